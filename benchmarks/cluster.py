"""What benchmarks/compose.py drills, with processes in place of containers.

    make cluster

Starts replicas, a Redis, and Envoy with the configuration of deploy/envoy, and Prometheus where
there is one; streams sessions of a real video through Envoy while the replicas are scaled to four
and back, one is killed, one drained and one frozen, and Envoy and Redis are restarted. Prints the
same figures as benchmarks/handoff.py, and exits with 1 as it does.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from segstream.bench.drills import Drills, Load, is_clean, make_parser, parse, show
from segstream.bench.local_envoy import LocalEnvoy
from segstream.bench.local_redis import LocalRedis
from segstream.bench.replicas import Replica

ROOT = Path(__file__).parent.parent
ENVOY = ROOT / "deploy/envoy/envoy.yaml"
NUM_REPLICAS = 2
FREEZE_SECONDS = 8.0
RESTART_SECONDS = 3.0  # a supervisor's back-off
HEALTHY_SECONDS = 120.0


class Cluster:
    """Replicas behind Envoy, which can be scaled and disturbed."""

    def __init__(self, folder: Path, redis: LocalRedis, envoy: LocalEnvoy) -> None:
        self._folder = folder
        self.redis = redis
        self.envoy = envoy
        self.replicas: list[Replica] = []

    def scale(self, num_replicas: int) -> None:
        """As an orchestrator does it: a new one is told to Envoy at once, and is not asked for
        anything until it is healthy; one that goes drains first."""
        environment = {"SEGSTREAM_REDIS_URL": self.redis.url, "SEGSTREAM_NUM_THREADS": "1"}
        while len(self.replicas) < num_replicas:
            name = f"replica-{len(self.replicas)}"
            self.replicas.append(Replica(name, self._folder, environment))
        going = self.replicas[num_replicas:]
        for replica in going:
            replica.signal(signal.SIGTERM)
        for replica in going:
            replica.wait()
        del self.replicas[num_replicas:]
        self.envoy.set_replicas((each.port, each.http_port) for each in self.replicas)
        self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        for replica in self.replicas:
            replica.wait_until_ready()
        deadline = time.monotonic() + HEALTHY_SECONDS
        while self.envoy.num_healthy() < len(self.replicas):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Envoy finds not all replicas healthy: see {self.envoy.log}")
            time.sleep(0.1)

    def stop(self) -> None:
        for replica in self.replicas:
            replica.stop()


def scale_out(cluster: Cluster) -> None:
    cluster.scale(2 * NUM_REPLICAS)


def scale_in(cluster: Cluster) -> None:
    cluster.scale(NUM_REPLICAS)


def kill(cluster: Cluster) -> None:
    cluster.replicas[0].signal(signal.SIGKILL)
    cluster.replicas[0].wait()
    time.sleep(RESTART_SECONDS)
    cluster.replicas[0].start()


def drain(cluster: Cluster) -> None:
    cluster.replicas[0].signal(signal.SIGTERM)
    cluster.replicas[0].wait()
    cluster.replicas[0].start()


def freeze(cluster: Cluster) -> None:
    cluster.replicas[0].signal(signal.SIGSTOP)
    time.sleep(FREEZE_SECONDS)
    cluster.replicas[0].signal(signal.SIGCONT)


def envoy_restart(cluster: Cluster) -> None:
    cluster.envoy.restart()


def redis_restart(cluster: Cluster) -> None:
    cluster.redis.restart()


DRILLS: dict[str, Callable[[Cluster], None]] = {
    each.__name__: each
    for each in (scale_out, scale_in, kill, drain, freeze, envoy_restart, redis_restart)
}


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        redis = stack.enter_context(LocalRedis())
        envoy = stack.enter_context(LocalEnvoy(ENVOY, folder))
        cluster = Cluster(folder, redis, envoy)
        stack.callback(cluster.stop)
        cluster.scale(NUM_REPLICAS)
        yield cluster


def options() -> argparse.Namespace:
    parser = make_parser(__doc__, DRILLS, ROOT, num_frames=45)
    parser.add_argument("--logs", type=Path, help="folder for the logs")
    return parse(parser, DRILLS)


def main() -> None:
    told = options()
    with tempfile.TemporaryDirectory(prefix="segstream-cluster-") as folder:
        logs = told.logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        with running_cluster(logs) as cluster:
            drills = Drills(
                cluster.envoy.grpc_address,
                Load.of(told),
                cluster.wait_until_healthy,
                Console(stderr=True),
            ).run({name: partial(DRILLS[name], cluster) for name in told.drills})
    if told.json:
        print(json.dumps({"drills": drills}, indent=2))
    else:
        show(drills, f"{told.sessions} sessions behind Envoy, {told.clip.name}")
    sys.exit(0 if all(map(is_clean, drills)) else 1)


if __name__ == "__main__":
    main()
