"""Drills: sessions that stream while something befalls the replicas, and what their clients notice.

The sessions stream a real video through the Python client; every label map is compared with that
of an undisturbed run.
"""

import argparse
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from segstream.bench.clips import add_clip
from segstream.client import Client
from segstream.errors import SegstreamError
from segstream.media.images import Image
from segstream.media.video import VideoReader

CONNECT_SECONDS = 60.0
_MAX_DISTURBANCE_SECONDS = 300.0
_STRETCH = 3  # frames by which the sessions' stretches of the clip are apart


@dataclass(frozen=True)
class Load:
    """What streams while a drill goes on.

    Each of ``num_sessions`` sends ``num_frames`` of the clip: as fast as they are answered, or so
    many a second. They are worked on at most ``max_working_height`` high.
    """

    clip: Path
    num_sessions: int
    num_frames: int
    max_working_height: int
    frames_per_second: float = 0.0

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Load":
        """What the options of ``add_arguments`` say."""
        return cls(
            options.clip,
            options.sessions,
            options.frames,
            options.max_working_height,
            options.frames_per_second,
        )


@dataclass
class _Phases:
    """What the streams of a drill wait for: each other at a third, the disturbance at the end."""

    midway: threading.Barrier
    is_over: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Stream:
    """One session's frames and what came back for them."""

    number: int
    frames: list[Image]
    load: Load
    digests: dict[int, bytes] = field(default_factory=dict)
    answers: Counter[int] = field(default_factory=Counter)
    sent_at: dict[int, float] = field(default_factory=dict)
    answered_at: dict[int, float] = field(default_factory=dict)
    num_resumed: int = 0
    error: str = ""

    def run(self, addresses: str, drill: str, phases: _Phases) -> None:
        try:
            with (
                Client(addresses, connect_timeout_seconds=CONNECT_SECONDS) as client,
                client.stream(
                    session_id=f"{drill}-{self.number}",
                    max_working_height=self.load.max_working_height,
                ) as session,
            ):
                for result in session.segment(self._paced(phases)):
                    self.answers[result.frame_index] += 1
                    self.digests[result.frame_index] = result.digest
                    self.answered_at[result.frame_index] = time.monotonic()
                    self.num_resumed = len(session.resumptions)
        except SegstreamError as error:
            self.error = error.message
            phases.midway.abort()

    def _paced(self, phases: _Phases) -> Iterator[Image]:
        """The frames, at their times; some come before, some after the disturbance."""
        pause = 1 / self.load.frames_per_second if self.load.frames_per_second else 0.0
        next_at = time.monotonic()
        for number, frame in enumerate(self.frames):
            if number == len(self.frames) // 3:
                with suppress(threading.BrokenBarrierError):
                    phases.midway.wait()
            if number == len(self.frames) - len(self.frames) // 6:
                phases.is_over.wait(_MAX_DISTURBANCE_SECONDS)
            next_at = max(next_at + pause, time.monotonic())
            time.sleep(max(0.0, next_at - time.monotonic()))
            self.sent_at[number] = time.monotonic()
            yield frame

    def longest_wait(self, since: float) -> float:
        """Seconds that the client had a frame out and no answer came."""
        waits = [0.0]
        before = since
        for number, at in sorted(self.answered_at.items(), key=lambda item: item[1]):
            if at > since:
                waits.append(at - max(before, self.sent_at[number]))
                before = at
        return max(waits)


class Drills:
    """Runs drills at ``addresses``, one after the other, under the same load.

    ``settle`` is called after each: it returns when all that should serve does.
    """

    def __init__(
        self, addresses: str, load: Load, settle: Callable[[], None], console: Console
    ) -> None:
        self._addresses = addresses
        self._load = load
        self._settle = settle
        self._console = console
        with VideoReader(load.clip) as reader:
            self._clip = list(reader)

    def run(self, disturbances: Mapping[str, Callable[[], None]]) -> list[dict[str, Any]]:
        """The figures of each drill, as ``benchmarks/handoff.py --json`` prints them."""
        undisturbed, _ = self._stream_all("undisturbed", lambda: None)
        drills = []
        for name, disturb in disturbances.items():
            streams, disturbed_at = self._stream_all(name, disturb)
            drills.append(_sum_up(name, streams, disturbed_at, undisturbed))
            for stream in streams:
                if stream.error:
                    self._console.print(f"{name}, session {stream.number}: {stream.error}")
        return drills

    def _stream_all(self, name: str, disturb: Callable[[], None]) -> tuple[list[_Stream], float]:
        """Stream all sessions, disturb them after a third of the frames; when that was."""
        clip, load = self._clip, self._load
        streams = [
            _Stream(
                number,
                [clip[(number * _STRETCH + i) % len(clip)] for i in range(load.num_frames)],
                load,
            )
            for number in range(load.num_sessions)
        ]
        phases = _Phases(threading.Barrier(len(streams) + 1))
        threads = [
            threading.Thread(target=stream.run, args=(self._addresses, name, phases), daemon=True)
            for stream in streams
        ]
        with self._console.status(name):
            for thread in threads:
                thread.start()
            with suppress(threading.BrokenBarrierError):
                phases.midway.wait()
            disturbed_at = time.monotonic()
            try:
                disturb()
            finally:
                phases.is_over.set()
            for thread in threads:
                thread.join()
            self._settle()
        return streams, disturbed_at


def _sum_up(
    name: str, streams: list[_Stream], disturbed_at: float, undisturbed: list[_Stream]
) -> dict[str, Any]:
    affected = [stream for stream in streams if stream.num_resumed] or streams
    waits = [stream.longest_wait(disturbed_at) for stream in affected]
    p50, p95 = np.percentile(waits, (50, 95)).tolist()
    return {
        "name": name,
        "frames_sent": sum(len(stream.frames) for stream in streams),
        "frames_answered": sum(len(stream.answers) for stream in streams),
        "frames_lost": sum(len(stream.frames) - len(stream.answers) for stream in streams),
        "frames_twice": sum(n - 1 for stream in streams for n in stream.answers.values()),
        "label_maps_differing": sum(
            digest != reference.digests.get(index)
            for stream, reference in zip(streams, undisturbed, strict=True)
            for index, digest in stream.digests.items()
        ),
        "sessions": len(streams),
        "sessions_lost": sum(bool(stream.error) for stream in streams),
        "sessions_resumed": sum(stream.num_resumed > 0 for stream in streams),
        "recovery_p50_seconds": p50,
        "recovery_p95_seconds": p95,
    }


def is_clean(drill: Mapping[str, Any]) -> bool:
    """Whether nothing was lost, answered twice or answered otherwise."""
    counts = ("frames_lost", "frames_twice", "label_maps_differing", "sessions_lost")
    return not any(drill[count] for count in counts)


def show(drills: list[dict[str, Any]], title: str) -> None:
    """Print the drills as a table."""
    table = Table(
        Column("drill", no_wrap=True),
        *("frames", "lost", "twice", "differ", "sessions lost", "resumed"),
        *("recovery p50, s", "p95, s"),
        title=title,
    )
    for drill in drills:
        table.add_row(
            drill["name"],
            *(str(drill[key]) for key in ("frames_answered", "frames_lost", "frames_twice")),
            *(str(drill[key]) for key in ("label_maps_differing", "sessions_lost")),
            str(drill["sessions_resumed"]),
            *(f"{drill[f'recovery_{p}_seconds']:.2f}" for p in ("p50", "p95")),
        )
    Console(width=max(100, Console().width)).print(table)


def make_parser(
    description: str | None,
    drills: Mapping[str, object],
    root: Path,
    *,
    num_frames: int,
    frames_per_second: float = 0.0,
) -> argparse.ArgumentParser:
    """The options that every program of drills has; ``parse`` checks them.

    ``root`` is the repository.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--drills", default=",".join(drills), help="which, commas between")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--frames", type=int, default=num_frames, help="of each session")
    parser.add_argument(
        "--frames-per-second",
        type=float,
        default=frames_per_second,
        help="of each session; 0 = as fast as they are answered",
    )
    add_clip(parser, root)
    parser.add_argument("--max-working-height", type=int, default=96)
    return parser


def parse(parser: argparse.ArgumentParser, drills: Mapping[str, object]) -> argparse.Namespace:
    """The options; ends the program with one line about what cannot be."""
    options = parser.parse_args()
    options.drills = options.drills.split(",")
    if unknown := set(options.drills) - set(drills):
        parser.error(f"no drill {', '.join(sorted(unknown))}; there are {', '.join(drills)}")
    return options
