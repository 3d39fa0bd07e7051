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
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from segstream.bench.drills import Drills, Load, is_clean, make_parser, parse, show
from segstream.bench.local_redis import LocalRedis
from segstream.bench.replicas import Replica

ROOT = Path(__file__).parent.parent
FREEZE_SECONDS = 6.0
RESTART_SECONDS = 3.0  # a supervisor's back-off; starting takes one of two cores for a while


@dataclass
class Site:
    """What a drill may disturb."""

    replicas: list[Replica]
    redis: LocalRedis

    @property
    def addresses(self) -> str:
        return ",".join(replica.address for replica in self.replicas)

    def wait_until_ready(self) -> None:
        for replica in self.replicas:
            replica.wait_until_ready()


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
        site = Site(replicas, redis)
        site.wait_until_ready()
        yield site


def options() -> argparse.Namespace:
    parser = make_parser(__doc__, DRILLS, ROOT, num_frames=45)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--logs", type=Path, help="folder for the replicas' logs")
    told = parse(parser, DRILLS)
    if told.replicas < 2:
        parser.error("--replicas must be 2 or more: who would take over?")
    return told


def main() -> None:
    told = options()
    with tempfile.TemporaryDirectory(prefix="segstream-handoff-") as folder:
        logs = told.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        with running_site(told.replicas, logs) as site:
            drills = Drills(
                site.addresses, Load.of(told), site.wait_until_ready, Console(stderr=True)
            ).run({name: partial(DRILLS[name], site) for name in told.drills})
    if told.json:
        print(json.dumps({"drills": drills}, indent=2))
    else:
        show(drills, f"{told.sessions} sessions, {told.replicas} replicas, {told.clip.name}")
    sys.exit(0 if all(map(is_clean, drills)) else 1)


if __name__ == "__main__":
    main()
