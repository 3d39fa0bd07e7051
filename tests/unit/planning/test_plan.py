from pathlib import Path

import numpy as np
import pytest
import yaml

from segstream.errors import InvalidInputError
from segstream.planning.compose_values import write_compose_values
from segstream.planning.growth import grow
from segstream.planning.measurement import fit_forward
from segstream.planning.plan import Objective, make_plan, sessions_per_replica
from segstream.planning.profile import MachineProfile, read_profile, write_profile


def test_a_replica_bears_what_the_simulation_bears(profile: MachineProfile) -> None:
    strict = sessions_per_replica(profile, Objective(1, 5, latency_ms=40), 1)
    lax = sessions_per_replica(profile, Objective(1, 5, latency_ms=400), 1)
    # 8 frames take 90 ms of forward and 16 ms of the rest.
    assert 0 < strict < lax <= 8 / 0.106 / 5


def test_a_plan_keeps_its_objective(profile: MachineProfile) -> None:
    objective = Objective(num_sessions=60, frames_per_second=5, latency_ms=150, num_spare=1)
    plan = make_plan(profile, objective, cores_per_replica=1)
    assert plan.predicted_p95_ms <= 150
    assert plan.fullest_replica <= 0.9 * 8 / 0.106 / 5
    assert plan.num_replicas > 60 / plan.sessions_per_replica
    assert plan.memory_bank_bytes_per_replica == plan.fullest_replica * 400_000
    assert plan.memory_bytes_per_replica > 400_000_000
    assert plan.redis_bytes_per_second == 60 * 5 * 10_000
    spared = make_plan(profile, Objective(60, 5, 150, num_spare=0), cores_per_replica=1)
    assert plan.num_replicas == spared.num_replicas + 1


def test_an_objective_that_no_replica_keeps_is_refused(profile: MachineProfile) -> None:
    with pytest.raises(InvalidInputError, match=r"slo_ms is 5, but a lone session .* 22 ms"):
        make_plan(profile, Objective(1, 5, latency_ms=5), cores_per_replica=1)


def test_growth_ends_where_redis_is_used_up(profile: MachineProfile) -> None:
    costly = profile.model_copy(update={"redis_frame_ms": 2.0})
    objective = Objective(60, 5, 150)
    plan = make_plan(costly, objective, cores_per_replica=1)
    stages = grow(costly, objective, plan, seconds_between_failures=600)
    # 300 frames a second take 0.6 of Redis: twice as many are too much.
    assert [stage.factor for stage in stages] == [1, 2]
    assert stages[0].redis == pytest.approx(0.6)
    assert stages[-1].redis == pytest.approx(1.2)
    assert stages[0].first_limit == "Redis, used up at about 2 times the load"


def test_the_override_for_compose(profile: MachineProfile, tmp_path: Path) -> None:
    plan = make_plan(profile, Objective(20, 5, 150), cores_per_replica=1)
    path = tmp_path / "plan.yml"
    write_compose_values(plan, path)
    service = yaml.safe_load(path.read_text())["services"]["service"]
    assert service["deploy"]["replicas"] == plan.num_replicas
    assert service["deploy"]["resources"]["limits"]["cpus"] == "1"
    environment = service["environment"]
    assert int(environment["SEGSTREAM_MAX_SESSIONS"]) >= plan.fullest_replica
    assert int(environment["SEGSTREAM_MAX_MEMORY_BYTES"]) >= plan.memory_bank_bytes_per_replica


def test_a_profile_comes_back_from_its_file(profile: MachineProfile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(profile, path)
    assert read_profile(path) == profile


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "model: Field required"), ("no", "Invalid JSON"), (None, "No such file")],
)
def test_another_file_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_profile(path)


def test_the_cost_of_forwards_is_found_again() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 400)
    seconds = (0.02 + 0.05 * sizes) * np.exp(rng.normal(0, 0.05, 400))
    seconds[::40] *= 3  # the machine was busy with something else
    fixed, per_frame, jitter = fit_forward(sizes, seconds)
    assert fixed == pytest.approx(0.02, abs=0.01)
    assert per_frame == pytest.approx(0.05, rel=0.05)
    assert jitter == pytest.approx(0.05, rel=0.3)


def test_batches_of_one_size_have_no_fixed_cost_to_tell() -> None:
    fixed, per_frame, _ = fit_forward(np.array([2, 2]), np.array([0.2, 0.2]))
    assert fixed == 0
    assert per_frame == pytest.approx(0.1)
