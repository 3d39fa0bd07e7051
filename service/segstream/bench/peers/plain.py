"""Sessions as one would write them around the network: a stream object for each video."""

import cv2
import numpy as np
import torch

from segstream.checkpoints import DEFAULT
from segstream.media.label_maps import IdSpace, LabelMapEncoding, encode_label_map
from segstream.models import load
from segstream.models.stream import LMANetStream


class PlainSessions:
    """The default model in torch, with this package's attention."""

    def __init__(self) -> None:
        self._model = load(DEFAULT)
        self._streams: dict[str, LMANetStream] = {}

    def decode(self, jpeg: bytes) -> torch.Tensor:
        """A frame ``(1, 3, H, W)`` in 0..1."""
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        return torch.from_numpy(image).permute(2, 0, 1)[None].float().div(255)

    @torch.inference_mode()
    def segment(self, session_id: str, frame: torch.Tensor) -> torch.Tensor:
        """The label map ``(H, W)`` uint8 of the session's next frame."""
        stream = self._streams.setdefault(session_id, self._model.stream())
        num_classes = self._model.config.label_set.num_classes
        return stream.step(frame)[0, :num_classes].argmax(dim=0).to(torch.uint8)

    def encode(self, label_map: torch.Tensor) -> bytes:
        """A palette PNG."""
        label_set = self._model.config.label_set
        return encode_label_map(
            label_map.numpy(), LabelMapEncoding.PNG, IdSpace.TRAIN_ID, label_set
        )
