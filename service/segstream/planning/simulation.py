"""Replicas under load, as a discrete-event simulation.

What is simulated is the service's own rules: a session has one step in the engine at a time, the
engine runs whatever has gathered while the last forward ran, frames of a stream keep their order,
cores are shared by all that run on them. Sessions choose their replica by a hash, and choose again
when it dies; the memory is then rebuilt from the last T frames.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import simpy

from segstream.planning.profile import MachineProfile

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Load:
    """``num_sessions`` that send ``frames_per_second`` each, whether they are answered or not.

    Latency counts from when a frame was due, so that a service which holds its clients back does
    not look fast. Frames due in the first ``warm_up_seconds`` do not count.
    """

    num_sessions: int
    frames_per_second: float
    duration_seconds: float = 30.0
    warm_up_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where it runs.

    ``replicas_per_host`` replicas share ``cores_per_host`` cores. ``assignment``: sessions are
    spread by ``hash``, as a load balancer does, or ``even`` and evenly out of step with each other.
    A replica dies once in ``seconds_between_failures`` (0: never), is noticed after
    ``detection_seconds`` and takes sessions again after ``restart_seconds``.
    """

    num_replicas: int
    cores_per_host: float
    replicas_per_host: int = 1
    assignment: Literal["hash", "even"] = "hash"
    seconds_between_failures: float = 0.0
    detection_seconds: float = 1.0
    restart_seconds: float = 10.0


@dataclass(slots=True)
class Outcome:
    """What came of it; latencies in seconds.

    Utilisations are shares of the time that counts: ``engine`` of the busiest replica's engine,
    ``cores`` of the busiest host. ``num_unanswered`` frames were due and still unanswered at the
    end: where it is much more than the sessions, the load was not borne.
    """

    latencies: list[float] = field(default_factory=list)
    num_due: int = 0
    num_moved: int = 0
    num_failures: int = 0
    engine_utilisation: float = 0.0
    mean_engine_utilisation: float = 0.0
    core_utilisation: float = 0.0
    mean_batch_size: float = 0.0

    @property
    def num_unanswered(self) -> int:
        return self.num_due - len(self.latencies)

    @property
    def is_stable(self) -> bool:
        """Whether all but a hundredth of the frames that were due were answered."""
        return self.num_due > 0 and self.num_unanswered <= 0.01 * self.num_due + 1

    def percentile_ms(self, percent: float) -> float:
        """Latency that so many percent of the frames keep; infinite when not all are answered."""
        if not self.is_stable:
            return math.inf
        return 1000 * float(np.percentile(self.latencies, percent))


class Cores:
    """Cores that all jobs on them share alike when there are more jobs than cores."""

    def __init__(self, env: simpy.Environment, num_cores: float) -> None:
        self._env = env
        self._num_cores = num_cores
        self._jobs: list[tuple[float, int, float, simpy.Event]] = []
        self._numbers = itertools.count()
        self._demand = 0.0
        self._progress = 0.0  # seconds of work that each job here has been given since the start
        self._since = 0.0
        self._alarm = 0
        self.core_seconds = 0.0

    def work(self, seconds: float, cores: float = 1.0) -> simpy.Event:
        """Done after ``seconds`` where ``cores`` are free all the while, else later."""
        self._advance()
        done = self._env.event()
        heapq.heappush(self._jobs, (self._progress + seconds, next(self._numbers), cores, done))
        self._demand += cores
        self._set_alarm()
        return done

    @property
    def _rate(self) -> float:
        return min(1.0, self._num_cores / self._demand) if self._demand else 0.0

    def _advance(self) -> None:
        elapsed = self._env.now - self._since
        self._progress += elapsed * self._rate
        self.core_seconds += elapsed * self._rate * self._demand
        self._since = self._env.now

    def _set_alarm(self) -> None:
        if not self._jobs:
            return
        self._alarm += 1
        alarm = self._alarm
        delay = max(0.0, (self._jobs[0][0] - self._progress) / self._rate)
        self._env.timeout(delay).callbacks.append(lambda _: self._ring(alarm))

    def _ring(self, alarm: int) -> None:
        if alarm != self._alarm:
            return
        self._advance()
        end = self._jobs[0][0]
        while self._jobs and self._jobs[0][0] <= end:
            _, _, cores, done = heapq.heappop(self._jobs)
            self._demand -= cores
            done.succeed()
        self._set_alarm()


class _Died(Exception):
    """The replica died with the frame in it."""


class _Replica:
    """One engine, and whether it lives."""

    def __init__(
        self,
        env: simpy.Environment,
        cores: Cores,
        profile: MachineProfile,
        rng: np.random.Generator,
    ) -> None:
        self._env, self.cores, self._profile, self._rng = env, cores, profile, rng
        self._pending: deque[simpy.Event] = deque()
        self._in_forward: list[simpy.Event] = []
        self._wake = env.event()
        self.is_alive = True
        self.busy_seconds = 0.0
        self.num_forwards = 0
        self.num_frames = 0
        env.process(self._run())

    def step(self) -> simpy.Event:
        """One frame through the network; fails with _Died."""
        done = self._env.event()
        if not self.is_alive:
            done.fail(_Died())
        else:
            self._pending.append(done)
            if not self._wake.triggered:
                self._wake.succeed()
        return done

    def die(self) -> None:
        self.is_alive = False
        for frame in (*self._pending, *self._in_forward):
            frame.fail(_Died())
        self._pending.clear()
        self._in_forward = []

    def _run(self) -> Process:
        profile = self._profile
        while True:
            if not self._pending:
                self._wake = self._env.event()
                yield self._wake
                continue
            size = min(len(self._pending), profile.max_batch_size)
            self._in_forward = [self._pending.popleft() for _ in range(size)]
            jitter = math.exp(self._rng.normal(0.0, profile.forward_jitter))
            began = self._env.now
            yield self.cores.work(profile.forward_seconds(size) * jitter, profile.threads)
            self.busy_seconds += self._env.now - began
            self.num_forwards += 1
            self.num_frames += len(self._in_forward)
            done, self._in_forward = self._in_forward, []
            for frame in done:
                frame.succeed()


def simulate(
    profile: MachineProfile,
    site: Site,
    load: Load,
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """Run ``load`` on ``site``; the same seed gives the same outcome.

    ``progress`` hears the share that is done.
    """
    return _Simulation(profile, site, load, seed).run(progress)


class _Simulation:
    def __init__(self, profile: MachineProfile, site: Site, load: Load, seed: int) -> None:
        self.env = simpy.Environment()
        self.profile, self.site, self.load = profile, site, load
        self.rng = np.random.default_rng(seed)
        self.outcome = Outcome()
        num_hosts = math.ceil(site.num_replicas / site.replicas_per_host)
        self.hosts = [Cores(self.env, site.cores_per_host) for _ in range(num_hosts)]
        self.replicas = [
            _Replica(self.env, self.hosts[number // site.replicas_per_host], profile, self.rng)
            for number in range(site.num_replicas)
        ]

    def run(self, progress: Callable[[float], None]) -> Outcome:
        load = self.load
        for number in range(load.num_sessions):
            self.env.process(self._session(number))
        if self.site.seconds_between_failures:
            for replica in self.replicas:
                self.env.process(self._failures(replica))
        self.env.run(load.warm_up_seconds or 1e-9)
        before = [host.core_seconds for host in self.hosts]
        busy = [replica.busy_seconds for replica in self.replicas]
        parts = 20
        for part in range(1, parts + 1):
            self.env.run(load.warm_up_seconds + load.duration_seconds * part / parts)
            progress(part / parts)
        self._sum_up(before, busy)
        return self.outcome

    def _sum_up(self, hosts: list[float], busy: list[float]) -> None:
        seconds, outcome = self.load.duration_seconds, self.outcome
        engines = [r.busy_seconds - b for r, b in zip(self.replicas, busy, strict=True)]
        cores = [h.core_seconds - b for h, b in zip(self.hosts, hosts, strict=True)]
        outcome.engine_utilisation = max(engines) / seconds
        outcome.mean_engine_utilisation = sum(engines) / len(engines) / seconds
        outcome.core_utilisation = max(cores) / seconds / self.site.cores_per_host
        num_forwards = sum(replica.num_forwards for replica in self.replicas)
        num_frames = sum(replica.num_frames for replica in self.replicas)
        outcome.mean_batch_size = num_frames / num_forwards if num_forwards else 0.0

    def _session(self, number: int) -> Process:
        """Frames at their times, each on its way as soon as the one before left the engine."""
        period = 1 / self.load.frames_per_second
        turn = simpy.Resource(self.env)
        home = _Home(self, number)
        yield self.env.timeout(period * self._phase(number))
        while True:
            self.env.process(self._frame(home, turn, self.env.now))
            yield self.env.timeout(period)

    def _phase(self, number: int) -> float:
        """When in a period the session sends: by chance, or each at its own moment."""
        if self.site.assignment == "hash":
            return float(self.rng.uniform())
        return number / self.load.num_sessions

    def _frame(self, home: "_Home", turn: simpy.Resource, due: float) -> Process:
        load = self.load
        counts = load.warm_up_seconds <= due < load.warm_up_seconds + 0.9 * load.duration_seconds
        self.outcome.num_due += counts
        half = self.profile.overhead_ms / 2000
        yield home.replica.cores.work(half)
        with turn.request() as request:
            yield request
            while True:
                try:
                    yield home.replica.step()
                    break
                except _Died:
                    yield from home.move()
        yield home.replica.cores.work(half)
        if counts:
            self.outcome.latencies.append(self.env.now - due)

    def _failures(self, replica: _Replica) -> Process:
        while True:
            yield self.env.timeout(self.rng.exponential(self.site.seconds_between_failures))
            replica.die()
            self.outcome.num_failures += 1
            yield self.env.timeout(self.site.restart_seconds)
            replica.is_alive = True


class _Home:
    """The replica that holds a session."""

    def __init__(self, simulation: _Simulation, number: int) -> None:
        self._simulation = simulation
        replicas = simulation.replicas
        is_even = simulation.site.assignment == "even"
        index = number % len(replicas) if is_even else simulation.rng.integers(len(replicas))
        self.replica = replicas[index]

    def move(self) -> Process:
        """Find another replica and have it rebuild the memory."""
        simulation = self._simulation
        while True:
            yield simulation.env.timeout(simulation.site.detection_seconds)
            alive = [replica for replica in simulation.replicas if replica.is_alive]
            if not alive:
                continue
            self.replica = alive[simulation.rng.integers(len(alive))]
            try:
                for _ in range(simulation.profile.memory_length):
                    yield self.replica.step()
            except _Died:
                continue
            simulation.outcome.num_moved += 1
            return
