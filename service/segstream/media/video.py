"""Video files: frames out of a clip, frames into an MP4."""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from segstream.errors import InvalidInputError
from segstream.media.images import DEFAULT_IMAGE_LIMITS, Image, ImageLimits
from segstream.media.video_encoder import VideoEncoder

DEFAULT_FRAMES_PER_SECOND = Fraction(25)

_FIELD = "clip"
# Formats that hold their own pictures. Playlists (hls, concat, dash) would open other files.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,ivf,gif,h264,hevc"
)
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_MAX_FRAMES_PER_SECOND = 999  # above, a container's guess stands for "varies"
# A clip whose packets end this much before the container says has been cut off.
_MISSING_SECONDS = 0.5
_MISSING_SHARE = 0.05


class VideoReader:
    """Reads a video file once, front to back, as RGB (H, W, 3) turned the way it is shown.

    What cannot be read raises InvalidInputError, what is too large TooLargeError; a file that
    breaks off yields the frames before the break and then raises.
    """

    def __init__(self, path: Path, *, limits: ImageLimits = DEFAULT_IMAGE_LIMITS) -> None:
        self._path = path
        with ExitStack() as on_failure, _refusing("is not a video or is corrupt", path):
            self._container = on_failure.enter_context(_open_container(path))
            self._stream = _video_stream(self._container, path)
            context = self._stream.codec_context
            limits.check_size(context.width, context.height, _FIELD)
            context.options = {"max_pixels": str(limits.max_pixels)}
            self._frames = self._decode_frames()
            self._first = next(self._frames, None)
            if self._first is None:
                raise InvalidInputError(f"{_FIELD} {path.name} has no frames", field=_FIELD)
            self._size = (self._first.width, self._first.height)
            self._quarter_turns = round(self._first.rotation / 90) % 4
            on_failure.pop_all()

    @property
    def width(self) -> int:
        return self._size[self._quarter_turns % 2]

    @property
    def height(self) -> int:
        return self._size[1 - self._quarter_turns % 2]

    @property
    def frames_per_second(self) -> Fraction:
        for rate in (self._stream.average_rate, self._stream.guessed_rate):
            if rate is not None and 0 < rate <= _MAX_FRAMES_PER_SECOND:
                return rate
        return DEFAULT_FRAMES_PER_SECOND

    @property
    def num_frames(self) -> int | None:
        """What the container states or its duration suggests; None if it tells neither."""
        if self._stream.frames > 0:
            return self._stream.frames
        seconds = _stated_seconds(self._container)
        return round(seconds * self.frames_per_second) if seconds else None

    def __iter__(self) -> Iterator[Image]:
        return self.images()

    def images(self, first_frame: int = 0) -> Iterator[Image]:
        """The frames from one on; those before are decoded, but not turned into pixels."""
        with _refusing("is corrupt or breaks off in the middle", self._path):
            for index, frame in enumerate(self._all_frames()):
                if index >= first_frame:
                    yield self._to_image(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _all_frames(self) -> Iterator[VideoFrame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def _to_image(self, frame: VideoFrame) -> Image:
        width, height = self._size
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
        return np.ascontiguousarray(np.rot90(pixels, self._quarter_turns), np.uint8)

    def _decode_frames(self) -> Iterator[VideoFrame]:
        end_seconds = 0.0
        is_cut = False
        for packet in self._container.demux():
            end_seconds = max(end_seconds, _end_seconds(packet))
            if packet.stream is self._stream:
                is_cut = packet.is_corrupt if packet.size else is_cut
                yield from self._decode(packet)
        if is_cut or _is_short(end_seconds, self._container):
            raise InvalidInputError(
                f"{_FIELD} {self._path.name} breaks off after {end_seconds:.1f} seconds",
                field=_FIELD,
            )

    def _decode(self, packet: "Packet[Stream]") -> Iterator[VideoFrame]:
        try:
            yield from self._stream.decode(packet)
        except av.FFmpegError:
            # The frames before the broken one may still wait for their turn in the decoder.
            yield from self._stream.decode(None)
            raise


class VideoWriter:
    """Writes RGB frames of one size to an H.264 MP4, which appears under its name once complete.

    Odd sizes grow by one row or column, a copy of the last. An error inside the ``with`` block
    leaves no file. Raises InvalidInputError if the file cannot be created.
    """

    def __init__(self, path: Path, width: int, height: int, frames_per_second: Fraction) -> None:
        self._path = path
        self._partial_path = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            self._partial_path.touch()
        except OSError as error:
            raise InvalidInputError(
                f"output {path} cannot be written: {error.strerror}", field="output"
            ) from error
        self._encoder = VideoEncoder(self._partial_path, width, height, frames_per_second)

    def write(self, image: Image) -> None:
        """Append one frame, RGB (height, width, 3); ValueError for another shape."""
        self._encoder.write(image)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error_type is None:
                self._encoder.finish()
                os.replace(self._partial_path, self._path)
        finally:
            self._encoder.close()
            self._partial_path.unlink(missing_ok=True)


@contextmanager
def _refusing(fault: str, path: Path) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise InvalidInputError(
            f"{_FIELD} {path.name} {fault}: {error.strerror}", field=_FIELD
        ) from error


def _open_container(path: Path) -> InputContainer:
    if not path.is_file():
        raise InvalidInputError(f"{_FIELD} {path} is not a file", field=_FIELD)
    return av.open(f"file:{path}", "r", options=_OPEN_OPTIONS, metadata_errors="replace")


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise InvalidInputError(f"{_FIELD} {path.name} has no video stream", field=_FIELD)
    return stream


def _stated_seconds(container: InputContainer) -> Fraction | None:
    return Fraction(container.duration, av.time_base) if container.duration else None


def _end_seconds(packet: "Packet[Stream]") -> float:
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _is_short(end_seconds: float, container: InputContainer) -> bool:
    stated = float(_stated_seconds(container) or 0)
    missing = stated - (end_seconds - (container.start_time or 0) / av.time_base)
    return missing > max(_MISSING_SECONDS, _MISSING_SHARE * stated)
