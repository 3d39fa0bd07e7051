"""Frames to pixels and label maps to bytes: what codec threads do for a session."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from segstream.errors import SegstreamError
from segstream.label_sets import LabelSet
from segstream.media.images import (
    Image,
    ImageEncoding,
    ImageLimits,
    decode_image,
    detect_image_encoding,
    fit_height,
)
from segstream.media.label_maps import (
    LabelMap,
    encode_label_map,
    label_map_digest,
    resize_label_map,
)
from segstream.media.temporal_consistency import grey_of
from segstream.memory.frame_log import LoggedFrame
from segstream.streaming.messages import EncodedLabelMap, Frame, SessionConfig

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A frame's image at the working size, and the frame's own size in pixels.

    ``grey``: its grey values, if they are wanted.
    """

    image: Image
    width: int
    height: int
    grey: NDArray[np.uint8] | None = None


Decoding = DecodedFrame | SegstreamError
"""A frame's image, or why it has none."""


def decode_frame(
    frame: Frame | LoggedFrame,
    max_working_height: int,
    limits: ImageLimits,
    *,
    wants_grey: bool = False,
) -> Decoding:
    """The frame's pixels at the working size; what is wrong with it comes as the result."""
    if isinstance(frame, Frame) and frame.fault is not None:
        return frame.fault
    try:
        image = decode_image(
            frame.data,
            ImageEncoding(frame.encoding) if frame.encoding else detect_image_encoding(frame.data),
            width=frame.width,
            height=frame.height,
            limits=limits,
        )
    except SegstreamError as error:
        return error
    height, width = image.shape[:2]
    image = fit_height(image, max_working_height)
    return DecodedFrame(image, width, height, grey_of(image) if wants_grey else None)


def encode_result(
    label_map: LabelMap, frame_size: tuple[int, int], config: SessionConfig, label_set: LabelSet
) -> EncodedLabelMap:
    """The label map at the frame's size (width, height), as the session's client asked for it."""
    width, height = frame_size
    if label_map.shape != (height, width):
        label_map = resize_label_map(label_map, width, height)
    data = encode_label_map(label_map, config.label_map_encoding, config.id_space, label_set)
    return EncodedLabelMap(
        config.label_map_encoding, width, height, data, label_map_digest(label_map)
    )


class Timing(NamedTuple):
    """How long work took, and when it ended, in nanoseconds of the epoch."""

    seconds: float
    ended_ns: int


def timed(work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> tuple[_R, Timing]:
    """The result of codec work and its time."""
    started = time.perf_counter()
    result = work(*args, **kwargs)
    return result, Timing(time.perf_counter() - started, time.time_ns())
