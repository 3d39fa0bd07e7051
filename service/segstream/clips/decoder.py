"""Decoding a clip in a process of its own: this side of the pipe."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segstream.clips.decoder_process import MESSAGE_HEADER, MessageKind, Order, order_as_json
from segstream.clips.records import ClipFacts
from segstream.errors import InvalidInputError, TooLargeError

_FIELD: Final = "clip"
_MODULE: Final = "segstream.clips.decoder_process"
_CPU_SECONDS_PER_SECOND = 8
_MIN_CPU_SECONDS = 60
_PIPE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """What a clip may be and what decoding it may take.

    ``message_seconds`` bounds the wait for the next frame, however little it computes.
    """

    max_pixels: int
    max_seconds: float
    max_memory_bytes: int
    message_seconds: float = 60.0

    @property
    def max_cpu_seconds(self) -> int:
        """Of the whole clip."""
        return _MIN_CPU_SECONDS + round(_CPU_SECONDS_PER_SECOND * self.max_seconds)


class ClipDecoder:
    """Facts first, then frames. Raises InvalidInputError, TooLargeError where a limit is passed."""

    def __init__(self, process: asyncio.subprocess.Process, limits: DecoderLimits) -> None:
        assert process.stdout is not None
        self._process = process
        self._output = process.stdout
        self._limits = limits

    async def facts(self) -> ClipFacts:
        """To be asked for once, before the frames."""
        return ClipFacts.model_validate_json(await self._receive(MessageKind.FACTS) or b"")

    async def frames(self) -> AsyncIterator[bytes]:
        """RGB bytes, row by row, of each frame from the first one ordered."""
        while (data := await self._receive(MessageKind.FRAME)) is not None:
            yield data

    async def _receive(self, expected: MessageKind) -> bytes | None:
        """The next message; None for the end."""
        try:
            async with asyncio.timeout(self._limits.message_seconds):
                kind, num_bytes = MESSAGE_HEADER.unpack(
                    await self._output.readexactly(MESSAGE_HEADER.size)
                )
                data = await self._output.readexactly(num_bytes)
        except TimeoutError:
            raise TooLargeError(
                f"clip took more than {self._limits.message_seconds:g} seconds to decode one frame",
                field=_FIELD,
            ) from None
        except asyncio.IncompleteReadError:
            raise await self._death() from None
        match kind:
            case MessageKind.END:
                return None
            case MessageKind.FAULT:
                raise InvalidInputError(json.loads(data)["message"], field=_FIELD)
            case MessageKind.TOO_LARGE:
                raise TooLargeError(json.loads(data)["message"], field=_FIELD)
        assert kind == expected, f"the decoder sent {kind} for {expected}"
        return data

    async def _death(self) -> InvalidInputError:
        """Why a process that broke off ended, as far as one can tell."""
        status = await self._process.wait()
        if status == -signal.SIGXCPU:
            return TooLargeError(
                f"clip took more than {self._limits.max_cpu_seconds} seconds of processor time "
                "to decode",
                field=_FIELD,
            )
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return InvalidInputError(
            f"clip cannot be decoded: it ended its decoder with {how}; "
            f"{self._limits.max_memory_bytes} bytes of memory are allowed",
            field=_FIELD,
        )


@asynccontextmanager
async def decoding(
    path: Path, limits: DecoderLimits, *, first_frame: int = 0
) -> AsyncIterator[ClipDecoder]:
    """A decoder of the clip at ``path``, whose process ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_PIPE_BYTES,
        # Where to find this package, and none of the service's secrets.
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    order = Order(
        path=str(path),
        first_frame=first_frame,
        max_pixels=limits.max_pixels,
        max_seconds=limits.max_seconds,
        max_memory_bytes=limits.max_memory_bytes,
        max_cpu_seconds=limits.max_cpu_seconds,
    )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # its end is told when it is read
            process.stdin.write(order_as_json(order))
            await process.stdin.drain()
            process.stdin.close()
        yield ClipDecoder(process, limits)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
