"""H.264: RGB frames into an MP4, and MP4s of one kind one after the other."""

import os
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from segstream.media.images import Image

_ITU_709 = 1  # as the H.264 tags count: primaries, transfer and matrix alike
# The index goes in front, so that a browser can begin before it has all.
_INDEX_FIRST = {"movflags": "+faststart"}


class VideoEncoder:
    """Encodes RGB frames of one size into ``target``, a path or a seekable stream.

    Odd sizes grow by one row or column, a copy of the last. ``is_part``: ``join_videos`` takes it.
    """

    def __init__(
        self,
        target: Path | IO[bytes],
        width: int,
        height: int,
        frames_per_second: Fraction,
        *,
        is_part: bool = False,
    ) -> None:
        self._shape = (height, width, 3)
        self._has_frames = False
        # Only a file by name can be opened anew to move its index.
        if isinstance(target, os.PathLike):
            self._container = av.open(f"file:{target}", "w", format="mp4", options=_INDEX_FIRST)
        else:
            self._container = av.open(target, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=frames_per_second)
        self._stream.width = width + width % 2
        self._stream.height = height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"preset": "veryfast", "crf": "20"}
        if is_part:
            # Frames that wait for later ones would reach into the part before.
            self._stream.options |= {"bf": "0"}
        self._tag_colours()

    def write(self, image: Image) -> None:
        """Append one frame, RGB (height, width, 3); ValueError for another shape."""
        if image.shape != self._shape:
            raise ValueError(f"the frame has shape {image.shape}, the video {self._shape}")
        frame = VideoFrame.from_ndarray(self._padded(image), format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        self._container.mux(self._stream.encode(frame))
        self._has_frames = True

    def finish(self) -> None:
        """Write what is left and close; ValueError if there was no frame."""
        if not self._has_frames:
            raise ValueError("a video needs at least one frame")
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def close(self) -> None:
        """Close what was not finished; ``target`` then holds nothing of use."""
        with suppress(av.FFmpegError):
            self._container.close()

    def _tag_colours(self) -> None:
        context = self._stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _ITU_709
        context.color_range = ColorRange.MPEG

    def _padded(self, image: Image) -> Image:
        height, width = self._shape[:2]
        if height % 2 == 0 and width % 2 == 0:
            return np.ascontiguousarray(image)
        return np.asarray(
            cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8
        )


def join_videos(parts: Iterable[IO[bytes]], target: Path, frames_per_second: Fraction) -> None:
    """Put parts of one size and rate, made by VideoEncoder, one after the other as they are.

    Raises ValueError if there is none.
    """
    with av.open(f"file:{target}", "w", format="mp4", options=_INDEX_FIRST) as output:
        stream: VideoStream | None = None
        num_frames = 0
        for part in parts:
            with av.open(part, "r", format="mp4") as source:
                video = source.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                start = Fraction(num_frames) / frames_per_second
                num_frames += _append(output, stream, source.demux(video), start)
        if stream is None:
            raise ValueError("a video needs at least one part")


def _append(
    output: OutputContainer,
    stream: VideoStream,
    packets: "Iterable[Packet[VideoStream]]",
    start_seconds: Fraction,
) -> int:
    """Copy packets to later times; the number of them."""
    num_packets = 0
    for packet in packets:
        # The last one is empty and only says so.
        if packet.pts is None or packet.dts is None:
            continue
        start = round(start_seconds / packet.time_base)
        packet.pts += start
        packet.dts += start
        packet.stream = stream
        output.mux(packet)
        num_packets += 1
    return num_packets
