"""Chains of logged frames: how one tells that none is missing between them."""

from collections.abc import Sequence

from segstream.memory.frame_log import START, LoggedFrame
from segstream.streaming.messages import Frame


def follow(previous: int, frame: Frame, model_digest: str) -> LoggedFrame:
    """The log's entry of a frame memorised after that of index ``previous``."""
    return LoggedFrame(
        index=frame.index,
        previous=previous,
        encoding=frame.encoding.value if frame.encoding is not None else "",
        width=frame.width,
        height=frame.height,
        data=frame.data,
        model_digest=model_digest,
    )


def without_repeats(frames: Sequence[LoggedFrame]) -> list[LoggedFrame]:
    """The entries but for those that were memorised anew, after a hand-off, further on."""
    kept: list[LoggedFrame] = []
    for frame in frames:
        while kept and kept[-1].index >= frame.index:
            kept.pop()
        kept.append(frame)
    return kept


def frames_after(frames: Sequence[LoggedFrame], index: int) -> list[LoggedFrame] | None:
    """The entries that follow the frame ``index`` without a gap; None if there is a gap."""
    later = [frame for frame in frames if frame.index > index]
    expected = index
    for frame in later:
        if frame.previous != expected:
            return None
        expected = frame.index
    return later


def whole_memory(frames: Sequence[LoggedFrame], memory_length: int) -> list[LoggedFrame] | None:
    """The newest entries that make up a memory, oldest first; None when some are missing.

    They are T in number, or as many as there were since the memory was empty.
    """
    chain: list[LoggedFrame] = []
    for frame in reversed(frames):
        if chain and chain[0].previous != frame.index:
            return None
        chain.insert(0, frame)
        if len(chain) == memory_length or frame.previous == START:
            return chain
    return None
