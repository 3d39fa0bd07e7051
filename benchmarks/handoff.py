"""What a session's client notices when replicas drain, die or freeze, and when Redis is lost.

    python benchmarks/handoff.py [--json] [--drills drain,kill,freeze,redis_restart,redis_wipe]

Starts replicas and a Redis as processes, streams sessions of a real video through the Python
client, disturbs them in mid-stream, and compares every label map with those of an undisturbed run.
The sessions stream as fast as they are answered. They are worked on at a height at which a replica
alone still bears all of them on two cores: else one would measure the queue and not the recovery.
Recovery is the longest that a session which had to move (where none had: any) waited for an answer.
Exits with 1 if a frame was lost, answered twice or answered otherwise, or a session was lost.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from segstream.bench.local_redis import LocalRedis
from segstream.bench.replicas import Replica
from segstream.client import Client
from segstream.errors import SegstreamError
from segstream.media.images import Image
from segstream.media.video import VideoReader

ROOT = Path(__file__).parent.parent
CLIPS = (ROOT / "../shared/clips/camvid_val_480x360_15fps.mp4", ROOT / "demo/bikes.mp4")
FREEZE_SECONDS = 6.0
RESTART_SECONDS = 3.0  # a supervisor's back-off; starting takes one of two cores for a while
STRETCH = 3  # frames by which the sessions' stretches of the clip are apart


@dataclass
class Stream:
    """One session's frames and what came back for them."""

    number: int
    frames: list[Image]
    digests: dict[int, bytes] = field(default_factory=dict)
    answers: Counter[int] = field(default_factory=Counter)
    answered_at: list[float] = field(default_factory=list)
    num_resumed: int = 0
    error: str = ""

    def run(
        self, addresses: str, drill: str, max_working_height: int, midway: threading.Barrier
    ) -> None:
        try:
            with (
                Client(addresses, connect_timeout_seconds=60) as client,
                client.stream(
                    session_id=f"{drill}-{self.number}", max_working_height=max_working_height
                ) as session,
            ):
                for result in session.segment(self._paused(midway)):
                    self.answers[result.frame_index] += 1
                    self.digests[result.frame_index] = result.digest
                    self.answered_at.append(time.monotonic())
                    self.num_resumed = len(session.resumptions)
        except SegstreamError as error:
            self.error = error.message
            midway.abort()

    def _paused(self, midway: threading.Barrier) -> Iterator[Image]:
        """The frames; after a third of them all streams wait for each other."""
        for number, frame in enumerate(self.frames):
            if number == len(self.frames) // 3:
                with suppress(threading.BrokenBarrierError):
                    midway.wait()
            yield frame

    def longest_pause(self, since: float) -> float:
        """Seconds that the client waited for an answer."""
        times = [since, *(at for at in self.answered_at if at > since)]
        return max(np.diff(times), default=0.0)

    @property
    def is_lost(self) -> bool:
        return bool(self.error)


@dataclass
class Site:
    """What a drill may disturb."""

    replicas: list[Replica]
    redis: LocalRedis

    @property
    def addresses(self) -> str:
        return ",".join(replica.address for replica in self.replicas)


def nothing(_: Site) -> None:
    """The undisturbed run."""


def drain(site: Site) -> None:
    site.replicas[0].signal(signal.SIGTERM)
    site.replicas[0].wait()
    site.replicas[0].start()


def kill(site: Site) -> None:
    site.replicas[0].signal(signal.SIGKILL)
    site.replicas[0].wait()
    time.sleep(RESTART_SECONDS)
    site.replicas[0].start()


def freeze(site: Site) -> None:
    site.replicas[0].signal(signal.SIGSTOP)
    time.sleep(FREEZE_SECONDS)
    site.replicas[0].signal(signal.SIGCONT)


def redis_restart(site: Site) -> None:
    site.redis.restart()


def redis_wipe(site: Site) -> None:
    site.redis.command("FLUSHALL")


DRILLS: dict[str, Callable[[Site], None]] = {
    each.__name__: each for each in (drain, kill, freeze, redis_restart, redis_wipe)
}


def stream_all(
    site: Site, name: str, clip: list[Image], options: argparse.Namespace
) -> tuple[list[Stream], float]:
    """Stream all sessions, disturb them after a third of the frames; when that was."""
    streams = [
        Stream(number, [clip[(number * STRETCH + i) % len(clip)] for i in range(options.frames)])
        for number in range(options.sessions)
    ]
    midway = threading.Barrier(len(streams) + 1)
    arguments = (site.addresses, name, options.max_working_height, midway)
    threads = [
        threading.Thread(target=stream.run, args=arguments, daemon=True) for stream in streams
    ]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):
        midway.wait()
    disturbed_at = time.monotonic()
    DRILLS.get(name, nothing)(site)
    for thread in threads:
        thread.join()
    for replica in site.replicas:
        replica.wait_until_ready()
    return streams, disturbed_at


def sum_up(
    name: str, streams: list[Stream], disturbed_at: float, undisturbed: list[Stream]
) -> dict[str, Any]:
    affected = [stream for stream in streams if stream.num_resumed] or streams
    pauses = [stream.longest_pause(disturbed_at) for stream in affected]
    p50, p95 = np.percentile(pauses, (50, 95)).tolist()
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
        "sessions_lost": sum(stream.is_lost for stream in streams),
        "sessions_resumed": sum(stream.num_resumed > 0 for stream in streams),
        "recovery_p50_seconds": p50,
        "recovery_p95_seconds": p95,
    }


@contextmanager
def running_site(num_replicas: int, folder: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        redis = stack.enter_context(LocalRedis())
        environment = {"SEGSTREAM_REDIS_URL": redis.url, "SEGSTREAM_NUM_THREADS": "1"}
        replicas = []
        for number in range(num_replicas):
            replica = Replica(f"replica-{number}", folder, environment)
            stack.callback(replica.stop)
            replicas.append(replica)
        for replica in replicas:
            replica.wait_until_ready()
        yield Site(replicas, redis)


def run(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    with VideoReader(options.clip) as reader:
        clip = list(reader)
    drills = []
    with running_site(options.replicas, options.logs) as site:
        with console.status("undisturbed"):
            undisturbed, _ = stream_all(site, "undisturbed", clip, options)
        for name in options.drills:
            with console.status(name):
                streams, disturbed_at = stream_all(site, name, clip, options)
            drills.append(sum_up(name, streams, disturbed_at, undisturbed))
            for stream in streams:
                if stream.error:
                    console.print(f"{name}, session {stream.number}: {stream.error}")
    return drills


def is_clean(drill: dict[str, Any]) -> bool:
    counts = ("frames_lost", "frames_twice", "label_maps_differing", "sessions_lost")
    return not any(drill[count] for count in counts)


def show(drills: list[dict[str, Any]], options: argparse.Namespace) -> None:
    table = Table(
        Column("drill", no_wrap=True),
        *("frames", "lost", "twice", "differ", "sessions lost", "resumed"),
        *("recovery p50, s", "p95, s"),
        title=f"{options.sessions} sessions, {options.replicas} replicas, {options.clip.name}",
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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--drills", default=",".join(DRILLS), help="which, commas between")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--frames", type=int, default=45, help="of each session")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clip", type=Path, default=next(filter(Path.exists, CLIPS), CLIPS[-1]))
    parser.add_argument("--max-working-height", type=int, default=96)
    parser.add_argument("--logs", type=Path, help="folder for the replicas' logs")
    options = parser.parse_args()
    options.drills = options.drills.split(",")
    if unknown := set(options.drills) - set(DRILLS):
        parser.error(f"no drill {', '.join(sorted(unknown))}; there are {', '.join(DRILLS)}")
    if options.replicas < 2:
        parser.error("--replicas must be 2 or more: who would take over?")
    if not options.clip.is_file():
        parser.error(f"no video {options.clip}: see --clip, or run 'make demo' once")
    return options


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="segstream-handoff-") as folder:
        options.logs = options.logs or Path(folder)
        options.logs.mkdir(parents=True, exist_ok=True)
        drills = run(options, Console(stderr=True))
    if options.json:
        print(json.dumps({"drills": drills}, indent=2))
    else:
        show(drills, options)
    sys.exit(0 if all(map(is_clean, drills)) else 1)


if __name__ == "__main__":
    main()
