"""Answers to arrays: what the client makes of the bytes of a label map."""

from segstream.client.messages import Decoded
from segstream.errors import EngineError, InvalidInputError
from segstream.media.confidence import decode_confidence
from segstream.media.images import Image, ImageEncoding, decode_image
from segstream.media.label_maps import LabelMap, decode_label_map, label_map_digest
from segstream.v1 import segmentation_pb2 as pb
from segstream.wire import LABEL_MAP_ENCODINGS, inverted

_ENCODINGS_BY_NUMBER = inverted(LABEL_MAP_ENCODINGS)


class AnswerDecoder:
    """Unpacks label maps, and keeps those that frames on their way name as held.

    So the service can tell a later one by what has changed since. ``newest`` may be read by one
    thread while another decodes.
    """

    def __init__(self, *, verifies_digests: bool) -> None:
        self.newest: int | None = None
        self._verifies_digests = verifies_digests
        self._held: dict[int, LabelMap] = {}

    def decode(self, frame_index: int, packed: pb.LabelMap) -> Decoded:
        """The arrays of an answer. Raises EngineError if it is not what it says it is."""
        try:
            confidence = None
            if packed.confidence:
                confidence = decode_confidence(packed.confidence, packed.width, packed.height)
            if packed.encoding == pb.LABEL_MAP_ENCODING_OVERLAY_JPEG:
                return Decoded(overlay=_overlay(packed), confidence=confidence)
            label_map = self._label_map(packed)
        except (KeyError, InvalidInputError) as error:
            raise EngineError(
                f"the label map of frame {frame_index} cannot be read: {error}"
            ) from error
        if self._verifies_digests and label_map_digest(label_map) != packed.digest:
            raise EngineError(f"the label map of frame {frame_index} belies its digest")
        return Decoded(label_map, confidence=confidence)

    def hold(self, frame_index: int, label_map: LabelMap) -> None:
        """Keep a label map, for frames sent from now on to name it."""
        self._held[frame_index] = label_map.copy()  # the other one is the caller's, to write to
        self.newest = frame_index

    def let_go_before(self, frame_index: int) -> None:
        """No frame on its way names an older one any more."""
        for index in [index for index in self._held if index < frame_index]:
            del self._held[index]

    def _label_map(self, packed: pb.LabelMap) -> LabelMap:
        base = None
        if packed.HasField("base_frame_index"):
            base = self._held.get(packed.base_frame_index)
            if base is None:
                raise InvalidInputError(
                    f"it is the change since frame {packed.base_frame_index}, which was not named",
                    field="label_map.base_frame_index",
                )
        encoding = _ENCODINGS_BY_NUMBER[packed.encoding]
        return decode_label_map(packed.data, encoding, packed.width, packed.height, base=base)


def _overlay(packed: pb.LabelMap) -> Image:
    return decode_image(packed.data, ImageEncoding.JPEG, width=packed.width, height=packed.height)
