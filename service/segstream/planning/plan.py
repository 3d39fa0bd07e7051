"""From a load and an objective to replicas, memory and bandwidth."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from segstream.errors import InvalidInputError
from segstream.planning.profile import MachineProfile
from segstream.planning.simulation import Load, Site, simulate

MAX_REPLICAS = 4096
_NUM_DRAWS = 400
_CONFIDENCE = 0.95
_MEMORY_HEADROOM = 1.25
_SESSION_BYTES = 176 * 2**10
"""Of a session besides its memory bank: connection, buffers, tasks; benchmarks/idle_sessions.py."""
_MAX_UTILISATION = 0.9
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Objective:
    """``num_sessions`` of ``frames_per_second``; 95 of 100 frames answered in ``latency_ms``.

    It is to hold while ``num_spare`` replicas are down.
    """

    num_sessions: int
    frames_per_second: float
    latency_ms: float
    num_spare: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What the objective needs; memory and bandwidths in bytes and bytes per second.

    ``sessions_per_replica``: the most with which a replica by itself keeps the objective.
    ``fullest_replica``: the sessions on the fullest one, in 95 of 100 draws of the hash, while the
    spare ones are down. ``predicted_p95_ms``: with all replicas up.
    """

    num_replicas: int
    sessions_per_replica: int
    fullest_replica: int
    predicted_p95_ms: float
    engine_utilisation: float
    cores_per_replica: float
    memory_bytes_per_replica: int
    memory_bank_bytes_per_replica: int
    redis_bytes: int
    redis_bytes_per_second: float
    network_in_bytes_per_second: float
    network_out_bytes_per_second: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def make_plan(
    profile: MachineProfile,
    objective: Objective,
    *,
    cores_per_replica: float,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The smallest site that keeps the objective.

    Raises InvalidInputError where not even a lone session keeps it, or MAX_REPLICAS do not.
    """
    progress("finding how many sessions a replica bears")
    capacity = sessions_per_replica(profile, objective, cores_per_replica)
    if capacity == 0:
        alone = profile.forward_seconds(1) * 1000 + profile.overhead_ms
        raise InvalidInputError(
            f"slo_ms is {objective.latency_ms:g}, but a lone session at "
            f"{objective.frames_per_second:g} frames per second does not keep it: a frame takes "
            f"{alone:.0f} ms; allow more time, fewer or smaller frames, or a faster device",
            field="slo_ms",
        )
    progress("finding how many replicas the sessions need")
    num_replicas, fullest = _num_replicas(profile, objective, cores_per_replica)
    progress(f"simulating {num_replicas} replicas")
    site = Site(num_replicas, cores_per_host=cores_per_replica)
    load = Load(objective.num_sessions, objective.frames_per_second, duration_seconds=_SECONDS)
    outcome = simulate(profile, site, load)
    frames_per_second = objective.num_sessions * objective.frames_per_second
    banks = fullest * profile.session_bytes
    # Behind the answer each frame goes to the frame log: the last T of every session stay there.
    log_bytes = max(profile.memory_length, 1) * profile.frame_bytes
    return Plan(
        num_replicas=num_replicas,
        sessions_per_replica=capacity,
        fullest_replica=fullest,
        predicted_p95_ms=outcome.percentile_ms(95),
        engine_utilisation=outcome.mean_engine_utilisation,
        cores_per_replica=cores_per_replica,
        memory_bytes_per_replica=memory_bytes(profile.base_bytes, profile.session_bytes, fullest),
        memory_bank_bytes_per_replica=banks,
        redis_bytes=objective.num_sessions * (log_bytes + profile.session_bytes),
        redis_bytes_per_second=frames_per_second * profile.frame_bytes,
        network_in_bytes_per_second=frames_per_second * profile.frame_bytes,
        network_out_bytes_per_second=frames_per_second * profile.label_map_bytes,
    )


def memory_bytes(base_bytes: int, bank_bytes: int, num_sessions: int) -> int:
    """What a replica is to have: itself, so many sessions with their banks, and a quarter more."""
    return round(_MEMORY_HEADROOM * (base_bytes + num_sessions * (bank_bytes + _SESSION_BYTES)))


def sessions_per_replica(
    profile: MachineProfile, objective: Objective, cores_per_replica: float
) -> int:
    """The most sessions with which one replica keeps the objective; 0 for none."""

    def holds(num_sessions: int) -> bool:
        load = Load(num_sessions, objective.frames_per_second, duration_seconds=20.0)
        outcome = simulate(profile, Site(1, cores_per_replica), load)
        return outcome.percentile_ms(95) <= objective.latency_ms

    above = math.floor(_peak(profile, cores_per_replica, objective)) + 1
    below = 0
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below


def _num_replicas(
    profile: MachineProfile, objective: Objective, cores_per_replica: float
) -> tuple[int, int]:
    """How many replicas, and the sessions on the fullest while the spare ones are down.

    Sessions are spread by a hash, so the fullest replica holds more than its share: by how much is
    drawn, not guessed. It must not be overloaded, and the frames of the whole site must keep the
    objective.
    """
    most = math.floor(_MAX_UTILISATION * _peak(profile, cores_per_replica, objective))
    load = Load(objective.num_sessions, objective.frames_per_second, duration_seconds=_SECONDS)

    def holds(num_up: int) -> bool:
        if _fullest(objective.num_sessions, num_up) > max(1, most):
            return False
        outcome = simulate(profile, Site(num_up, cores_per_replica), load)
        return outcome.percentile_ms(95) <= objective.latency_ms

    above = max(1, math.ceil(objective.num_sessions / max(1, most)))
    below = above - 1
    while not holds(above):
        below, above = above, 2 * above
        if above > MAX_REPLICAS:
            raise InvalidInputError(
                f"sessions is {objective.num_sessions}: more than {MAX_REPLICAS} replicas would be "
                "needed; split the load over several sites",
                field="sessions",
            )
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above + objective.num_spare, _fullest(objective.num_sessions, above)


def _fullest(num_sessions: int, num_replicas: int) -> int:
    """Sessions on the fullest replica, in 95 of 100 draws of the hash."""
    shares = np.full(num_replicas, 1 / num_replicas)
    draws = np.random.default_rng(0).multinomial(num_sessions, shares, _NUM_DRAWS)
    return int(np.quantile(draws.max(axis=1), _CONFIDENCE, method="higher"))


def _peak(profile: MachineProfile, cores_per_replica: float, objective: Objective) -> float:
    """Sessions above which a replica's engine or cores have no idle moment left."""
    size = profile.max_batch_size
    forward = profile.forward_seconds(size) / size
    core_seconds = forward * profile.threads + profile.overhead_ms / 1000
    busiest = max(forward, core_seconds / cores_per_replica)
    return 1 / busiest / objective.frames_per_second
