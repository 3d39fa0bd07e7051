"""Protobuf requests as tests send them."""

from typing import Any

from segstream.media.images import Image, ImageEncoding, encode_image
from segstream.v1 import segmentation_pb2 as pb

WIRE_ENCODINGS = {
    ImageEncoding.JPEG: pb.IMAGE_ENCODING_JPEG,
    ImageEncoding.PNG: pb.IMAGE_ENCODING_PNG,
    ImageEncoding.RAW_RGB: pb.IMAGE_ENCODING_RAW_RGB,
}


def config_request(
    *,
    session_id: str = "",
    model: str = "",
    label_map_encoding: int = pb.LABEL_MAP_ENCODING_RAW,
    id_space: int = pb.ID_SPACE_TRAIN_ID,
    max_working_height: int = 0,
    **others: Any,
) -> pb.StreamSegmentRequest:
    config = pb.SessionConfig(
        session_id=session_id, model=model, max_working_height=max_working_height, **others
    )
    # Numbers that the enumerations do not know must pass as well, as from a newer client.
    fields = {3: label_map_encoding, 4: id_space}
    config.MergeFromString(b"".join(bytes((8 * field, n)) for field, n in fields.items()))
    return pb.StreamSegmentRequest(config=config)


def frame_request(
    index: int,
    image: Image,
    encoding: ImageEncoding = ImageEncoding.RAW_RGB,
    *,
    timestamp_us: int = 0,
) -> pb.StreamSegmentRequest:
    height, width = image.shape[:2]
    return data_request(
        index,
        encode_image(image, encoding),
        WIRE_ENCODINGS[encoding],
        width=width,
        height=height,
        timestamp_us=timestamp_us,
    )


def data_request(
    index: int,
    data: bytes,
    encoding: int = pb.IMAGE_ENCODING_UNSPECIFIED,
    *,
    width: int = 0,
    height: int = 0,
    timestamp_us: int = 0,
) -> pb.StreamSegmentRequest:
    """A frame of these very bytes, whatever they are."""
    frame = pb.Frame(index=index, timestamp_us=timestamp_us, data=data, width=width, height=height)
    frame.MergeFromString(bytes((8 * 3, encoding)))
    return pb.StreamSegmentRequest(frame=frame)
