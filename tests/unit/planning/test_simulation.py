import math
from dataclasses import replace

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from segstream.planning.profile import MachineProfile
from segstream.planning.simulation import Cores, Load, Site, simulate

SITE = Site(1, cores_per_host=1, assignment="even")
FAST = Load(1, 5, duration_seconds=20, warm_up_seconds=1)


def test_a_lone_session_waits_for_nobody(profile: MachineProfile) -> None:
    outcome = simulate(profile, SITE, FAST)
    # Forward and overhead, one after the other.
    assert outcome.percentile_ms(50) == pytest.approx(22)
    assert outcome.percentile_ms(100) == pytest.approx(22)
    assert outcome.engine_utilisation == pytest.approx(5 * 0.020, rel=0.05)
    assert outcome.mean_batch_size == 1
    assert outcome.num_failures == outcome.num_moved == 0


def test_what_is_more_than_the_engine_computes_is_not_borne(profile: MachineProfile) -> None:
    # 8 frames in 90 ms, on a core that their overhead of 2 ms each needs as well.
    at_most = 8 / (0.090 + 8 * 0.002)
    borne = simulate(profile, SITE, replace(FAST, num_sessions=int(0.8 * at_most / 5)))
    too_much = simulate(profile, SITE, replace(FAST, num_sessions=int(1.2 * at_most / 5)))
    assert borne.is_stable
    assert borne.mean_batch_size > 1
    assert not too_much.is_stable
    assert too_much.percentile_ms(95) == math.inf
    assert too_much.core_utilisation == pytest.approx(1, abs=0.01)


def test_twice_the_replicas_bear_twice_the_load(profile: MachineProfile) -> None:
    one = simulate(profile, SITE, replace(FAST, num_sessions=10))
    two = simulate(profile, replace(SITE, num_replicas=2), replace(FAST, num_sessions=20))
    assert two.percentile_ms(95) == pytest.approx(one.percentile_ms(95), rel=0.4)


def test_replicas_that_share_a_core_are_slower(profile: MachineProfile) -> None:
    noisy = profile.model_copy(update={"forward_jitter": 0.5})
    load = replace(FAST, num_sessions=6)
    apart = simulate(noisy, replace(SITE, num_replicas=2), load)
    together = simulate(noisy, replace(SITE, num_replicas=2, replicas_per_host=2), load)
    assert together.percentile_ms(95) > 1.1 * apart.percentile_ms(95)
    assert together.core_utilisation == pytest.approx(2 * apart.core_utilisation, rel=0.2)


def test_a_hash_loads_replicas_unevenly(profile: MachineProfile) -> None:
    load = replace(FAST, num_sessions=20)
    even = simulate(profile, replace(SITE, num_replicas=4), load)
    hashed = simulate(profile, replace(SITE, num_replicas=4, assignment="hash"), load)
    assert hashed.engine_utilisation > even.engine_utilisation
    assert hashed.percentile_ms(95) > even.percentile_ms(95)


def test_sessions_of_a_dead_replica_go_on_elsewhere(profile: MachineProfile) -> None:
    site = replace(SITE, num_replicas=3, seconds_between_failures=15.0, restart_seconds=5.0)
    load = replace(FAST, num_sessions=9, duration_seconds=60)
    outcome = simulate(profile, site, load)
    assert outcome.num_failures > 0
    assert outcome.num_moved > 0
    assert outcome.num_unanswered <= 9
    # Who was there when it happened waited until it was noticed, and for T rebuilt frames.
    assert outcome.percentile_ms(100) > 1000 * (site.detection_seconds + 3 * 0.020)


def test_the_same_seed_gives_the_same_outcome(profile: MachineProfile) -> None:
    noisy = profile.model_copy(update={"forward_jitter": 0.2})
    load = replace(FAST, num_sessions=5)
    first, again, other = (simulate(noisy, SITE, load, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@settings(max_examples=50, deadline=None)
@given(
    num_cores=st.integers(1, 4),
    jobs=st.lists(
        st.tuples(st.floats(0, 5), st.floats(0.1, 3), st.integers(1, 3)), min_size=1, max_size=12
    ),
)
def test_cores_give_no_more_than_they_have(
    num_cores: int, jobs: list[tuple[float, float, int]]
) -> None:
    env = simpy.Environment()
    cores = Cores(env, num_cores)
    spans: list[tuple[float, float, float]] = []

    def job(start: float, seconds: float, width: int) -> simpy.events.ProcessGenerator:
        yield env.timeout(start)
        yield cores.work(seconds, width)
        spans.append((start, seconds, env.now))

    for each in jobs:
        env.process(job(*each))
    env.run()
    assert len(spans) == len(jobs)
    assert all(end - start >= seconds - 1e-6 for start, seconds, end in spans)
    work = sum(seconds * width for _, seconds, width in jobs)
    assert cores.core_seconds == pytest.approx(work)
    busy = max(end for *_, end in spans) - min(start for start, *_ in jobs)
    assert work <= num_cores * busy + 1e-6
