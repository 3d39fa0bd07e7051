"""The process that decodes one uploaded clip, under limits, and does nothing else.

``python -m segstream.clips.decoder_process`` reads one Order as JSON from stdin, sets limits to
itself before it looks at the file, and writes messages to stdout: a kind, the number of bytes and
the bytes. A file that is made to hurt a decoder hurts this process.
"""

import json
import os
import resource
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import BinaryIO, Final

MESSAGE_HEADER: Final = struct.Struct("<BI")

_MIB = 1024 * 1024


class MessageKind(IntEnum):
    """What a message of this process holds."""

    FACTS = 1
    FRAME = 2
    END = 3
    FAULT = 4
    TOO_LARGE = 5


@dataclass(frozen=True, slots=True)
class Order:
    """What to decode and within which limits. Frames before ``first_frame`` are not sent."""

    path: str
    first_frame: int
    max_pixels: int
    max_seconds: float
    max_memory_bytes: int
    max_cpu_seconds: int


def main() -> None:
    """Carry out the order on stdin."""
    order = Order(**json.load(sys.stdin))
    _limit(order)
    output = sys.stdout.buffer
    try:
        for kind, data in _messages(order):
            _send(output, kind, data)
    except MemoryError:
        limit = order.max_memory_bytes // _MIB
        _send(output, MessageKind.TOO_LARGE, _fault(f"clip needs more than {limit} MiB to decode"))
    except BrokenPipeError:
        # Nobody wants the frames any more; nor may the interpreter try to flush them.
        os._exit(0)


def _limit(order: Order) -> None:
    """Bound memory and processor time; no file may be written."""
    # A thread pool that nobody needs would take address space for each core.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for limit, bound in (
        (resource.RLIMIT_AS, order.max_memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (bound, bound))
    # The soft limit ends it with a signal of its own, by which the service tells the reason.
    seconds = order.max_cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _messages(order: Order) -> Iterator[tuple[MessageKind, bytes | memoryview]]:
    from segstream.errors import InvalidInputError, TooLargeError

    try:
        yield from _decode(order)
    except TooLargeError as error:
        yield MessageKind.TOO_LARGE, _fault(error.message)
    except InvalidInputError as error:
        yield MessageKind.FAULT, _fault(error.message)


def _decode(order: Order) -> Iterator[tuple[MessageKind, bytes | memoryview]]:
    """Imports come after the limits: libraries reserve what they need within them."""
    from pathlib import Path

    from segstream.media.images import ImageLimits
    from segstream.media.video import VideoReader

    with VideoReader(Path(order.path), limits=ImageLimits(max_pixels=order.max_pixels)) as video:
        rate = video.frames_per_second
        max_frames = int(order.max_seconds * rate) + 1
        _check_length(video.num_frames or 0, max_frames, order)
        facts = {
            "width": video.width,
            "height": video.height,
            "frames_per_second": str(rate),
            "num_frames": video.num_frames,
        }
        yield MessageKind.FACTS, json.dumps(facts).encode()
        for index, image in enumerate(video.images(order.first_frame), order.first_frame + 1):
            _check_length(index, max_frames, order)
            yield MessageKind.FRAME, image.data.cast("B")
    yield MessageKind.END, b""


def _check_length(num_frames: int, max_frames: int, order: Order) -> None:
    from segstream.errors import TooLargeError

    if num_frames > max_frames:
        raise TooLargeError(
            f"clip has {num_frames} frames or more, which is longer than the "
            f"{order.max_seconds:g} seconds allowed (max_clip_seconds)",
            field="clip",
        )


def _fault(message: str) -> bytes:
    return json.dumps({"message": message}).encode()


def _send(output: BinaryIO, kind: MessageKind, data: bytes | memoryview) -> None:
    output.write(MESSAGE_HEADER.pack(kind, len(data)))
    output.write(data)
    output.flush()


def order_as_json(order: Order) -> bytes:
    """The inverse of what ``main`` reads."""
    return json.dumps(asdict(order)).encode()


if __name__ == "__main__":
    main()
