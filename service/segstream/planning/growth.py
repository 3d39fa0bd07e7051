"""What breaks first when a planned site and its load grow together."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from segstream.planning.plan import Objective, Plan
from segstream.planning.profile import MachineProfile
from segstream.planning.simulation import Load, Site, simulate

_FACTORS = (1, 2, 4, 8, 16, 32, 64)
_MAX_SESSIONS = 4096  # more would take minutes to simulate
_SECONDS = 10.0
_LINK_BYTES_PER_SECOND = 10e9 / 8


@dataclass(frozen=True, slots=True)
class Stage:
    """``factor`` times the load on as many times the replicas, while replicas die.

    ``engine``, ``redis`` and ``network`` are shares in use: of all engines, of the one core of one
    Redis, of a link of 10 Gbit/s into the load balancer.
    """

    factor: int
    num_replicas: int
    num_sessions: int
    p95_ms: float
    p99_ms: float
    engine: float
    redis: float
    network: float
    num_failures: int
    num_moved: int

    @property
    def first_limit(self) -> str:
        """What does not grow with the replicas and is used up first, and when."""
        name, share = max(
            ("Redis", self.redis), ("network", self.network), key=lambda each: each[1]
        )
        return f"{name}, used up at about {self.factor / share:.0f} times the load"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"first_limit": self.first_limit}


def grow(
    profile: MachineProfile,
    objective: Objective,
    plan: Plan,
    *,
    seconds_between_failures: float,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Stage]:
    """Stages up to where Redis or the network is used up, or the simulation would take minutes.

    Each replica dies once in ``seconds_between_failures``, at random.
    """
    stages: list[Stage] = []
    for factor in _FACTORS:
        num_sessions = factor * objective.num_sessions
        if stages and (num_sessions > _MAX_SESSIONS or _is_used_up(stages[-1])):
            break
        progress(f"simulating {num_sessions} sessions")
        site = Site(
            factor * plan.num_replicas,
            cores_per_host=plan.cores_per_replica,
            seconds_between_failures=seconds_between_failures,
        )
        load = Load(num_sessions, objective.frames_per_second, duration_seconds=_SECONDS)
        outcome = simulate(profile, site, load)
        frames_per_second = num_sessions * objective.frames_per_second
        stages.append(
            Stage(
                factor=factor,
                num_replicas=site.num_replicas,
                num_sessions=num_sessions,
                p95_ms=outcome.percentile_ms(95),
                p99_ms=outcome.percentile_ms(99),
                engine=outcome.mean_engine_utilisation,
                redis=frames_per_second * profile.redis_frame_ms / 1000,
                network=frames_per_second * profile.frame_bytes / _LINK_BYTES_PER_SECOND,
                num_failures=outcome.num_failures,
                num_moved=outcome.num_moved,
            )
        )
    return stages


def _is_used_up(stage: Stage) -> bool:
    return max(stage.redis, stage.network) >= 1
