"""Frames to pixels and label maps to bytes: what codec threads do for a session."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from segstream.engine import StepResult
from segstream.errors import SegstreamError
from segstream.label_sets import LabelSet
from segstream.media.confidence import encode_confidence
from segstream.media.images import (
    Image,
    ImageEncoding,
    ImageLimits,
    decode_image,
    detect_image_encoding,
    encode_image,
    fit_height,
)
from segstream.media.label_maps import (
    LabelMapEncoding,
    decode_label_map,
    encode_delta,
    encode_label_map,
    in_id_space,
    label_map_digest,
    resize_label_map,
)
from segstream.media.overlay import draw_overlay
from segstream.media.temporal_consistency import grey_of
from segstream.memory.frame_log import LoggedFrame
from segstream.streaming.messages import EncodedLabelMap, Frame, SessionConfig

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A frame's image at the working size, and the frame's own size in pixels.

    ``full_image`` is the image at that size; ``grey``: the grey values of ``image``, if they are
    wanted.
    """

    image: Image
    full_image: Image
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
    fitted = fit_height(image, max_working_height)
    return DecodedFrame(fitted, image, width, height, grey_of(fitted) if wants_grey else None)


@dataclass(frozen=True, slots=True)
class Base:
    """A label map that a client holds, and of which frame it was."""

    frame_index: int
    label_map: EncodedLabelMap


@dataclass(frozen=True, slots=True)
class EncodedResult:
    """A label map as it is to be sent, and as it is to be kept: whole."""

    sent: EncodedLabelMap
    kept: EncodedLabelMap


def encode_result(
    result: StepResult,
    frame_size: tuple[int, int],
    config: SessionConfig,
    label_set: LabelSet,
    *,
    image: Image | None = None,
    base: Base | None = None,
) -> EncodedResult:
    """The result at the frame's size (width, height), as the session's client asked for it.

    ``image`` of that size is for overlays, ``base`` for deltas: the change since then is sent
    unless the whole label map is smaller.
    """
    width, height = frame_size
    encoding = config.label_map_encoding
    assert result.label_map is not None
    label_map = resize_label_map(result.label_map, width, height)
    if encoding is LabelMapEncoding.OVERLAY_JPEG:
        assert image is not None
        overlay = draw_overlay(image, label_map, label_set, opacity=config.overlay_opacity)
        data = encode_image(overlay, ImageEncoding.JPEG, quality=config.overlay_quality)
    else:
        data = encode_label_map(label_map, encoding, config.id_space, label_set)
    confidence = b""
    if result.confidence is not None:
        confidence = encode_confidence(resize_label_map(result.confidence, width, height))
    digest = label_map_digest(label_map)
    kept = EncodedLabelMap(encoding, width, height, data, digest, confidence=confidence)
    if base is None or not base.label_map.encoding.holds_ids:
        return EncodedResult(kept, kept)
    delta = _delta(in_id_space(label_map, config.id_space, label_set), base)
    if delta is None or len(delta) >= len(data):
        return EncodedResult(kept, kept)
    return EncodedResult(replace(kept, data=delta, base_frame_index=base.frame_index), kept)


def _delta(ids: NDArray[np.uint8], base: Base) -> bytes | None:
    held = base.label_map
    if (held.height, held.width) != ids.shape:
        return None
    return encode_delta(ids, decode_label_map(held.data, held.encoding, held.width, held.height))


class Timing(NamedTuple):
    """How long work took, and when it ended, in nanoseconds of the epoch."""

    seconds: float
    ended_ns: int


def timed(work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> tuple[_R, Timing]:
    """The result of codec work and its time."""
    started = time.perf_counter()
    result = work(*args, **kwargs)
    return result, Timing(time.perf_counter() - started, time.time_ns())
