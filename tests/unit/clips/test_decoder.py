"""Clips decoded by the real process, some of them made to hurt it."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segstream.clips.decoder import DecoderLimits, decoding
from segstream.errors import InvalidInputError, TooLargeError
from segstream.media.video import VideoReader
from tests.support.clips import write_clip

LIMITS = DecoderLimits(max_pixels=100_000, max_seconds=10.0, max_memory_bytes=2**31)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "ride.mp4", 30)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than a pipe holds."""
    return write_clip(tmp_path_factory.mktemp("long") / "ride.mp4", 60, 480, 640)


async def decode(path: Path, limits: DecoderLimits = LIMITS) -> int:
    async with decoding(path, limits) as decoder:
        await decoder.facts()
        return len([frame async for frame in decoder.frames()])


async def test_frames_are_those_that_a_reader_here_sees(clip: Path) -> None:
    with VideoReader(clip) as video:
        expected = list(video)
    async with decoding(clip, LIMITS, first_frame=27) as decoder:
        facts = await decoder.facts()
        assert (facts.width, facts.height, facts.num_frames) == (64, 48, 30)
        frames = [np.frombuffer(frame, np.uint8) async for frame in decoder.frames()]
    assert len(frames) == 3
    for frame, image in zip(frames, expected[27:], strict=True):
        assert np.array_equal(frame, image.ravel())


async def test_its_process_ends_with_the_block(clip: Path) -> None:
    async with decoding(clip, LIMITS) as decoder:
        await decoder.facts()
        process = decoder._process
    assert process.returncode is not None


@pytest.mark.parametrize(
    ("limits", "kind", "told"),
    [
        (replace(LIMITS, max_pixels=3000), TooLargeError, "at most 3000 are allowed"),
        (replace(LIMITS, max_seconds=1.0), TooLargeError, "longer than the 1 seconds allowed"),
        (replace(LIMITS, max_memory_bytes=2**28), InvalidInputError, "268435456 bytes of memory"),
        (replace(LIMITS, message_seconds=0.01), TooLargeError, "more than 0.01 seconds"),
    ],
    ids=["pixels", "duration", "memory", "time"],
)
async def test_a_limit_that_is_passed_is_told(
    clip: Path, limits: DecoderLimits, kind: type[InvalidInputError], told: str
) -> None:
    with pytest.raises(kind, match=told) as caught:
        await decode(clip, limits)
    assert caught.value.field == "clip"


async def test_a_decoder_that_used_up_its_processor_time(long_clip: Path) -> None:
    async with decoding(long_clip, replace(LIMITS, max_pixels=400_000)) as decoder:
        await decoder.facts()
        decoder._process.send_signal(signal.SIGXCPU)
        with pytest.raises(TooLargeError, match="more than 140 seconds of processor time"):
            await asyncio.wait_for(_drained(decoder.frames()), 20)


async def test_the_system_holds_the_decoder_to_its_limits(long_clip: Path) -> None:
    async with decoding(long_clip, replace(LIMITS, max_pixels=400_000)) as decoder:
        await decoder.facts()
        limits = await asyncio.to_thread(Path(f"/proc/{decoder._process.pid}/limits").read_text)
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()[1:]}
    assert soft["Max cpu time"] == "140"
    assert soft["Max address space"] == str(2**31)
    assert soft["Max file size"] == "0"


async def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"not a video at all")
    with pytest.raises(InvalidInputError, match="is not a video or is corrupt"):
        await decode(path)


@pytest.fixture
def cut_clip(tmp_path: Path, clip: Path) -> Path:
    """Cut in the middle of its frames; the index is in front."""
    whole = clip.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


async def test_a_clip_that_breaks_off_gives_what_it_has_first(cut_clip: Path) -> None:
    async with decoding(cut_clip, LIMITS) as decoder:
        await decoder.facts()
        frames = aiter(decoder.frames())
        assert await anext(frames)
        with pytest.raises(InvalidInputError, match=r"breaks off|corrupt"):
            await _drained(frames)


async def test_a_decoder_that_is_killed_is_told_of(long_clip: Path) -> None:
    async with decoding(long_clip, replace(LIMITS, max_pixels=400_000)) as decoder:
        await decoder.facts()
        decoder._process.kill()
        with pytest.raises(InvalidInputError, match="ended its decoder with SIGKILL"):
            await asyncio.wait_for(_drained(decoder.frames()), 20)


async def test_a_reader_that_goes_away_stops_it(long_clip: Path) -> None:
    async with decoding(long_clip, replace(LIMITS, max_pixels=400_000)) as decoder:
        await decoder.facts()
        transport = decoder._process._transport  # type: ignore[attr-defined]
        transport.get_pipe_transport(1).close()
        assert await asyncio.wait_for(decoder._process.wait(), 20) == 0


async def _drained(frames: AsyncIterator[bytes]) -> None:
    async for _ in frames:
        pass
