"""docker-compose.yml, as far as it can be told without an engine; `make compose-test` runs it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from segstream.settings import Settings

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]
DEFAULTS = dict(
    line.split("=", 1)
    for line in (ROOT / ".env").read_text().splitlines()
    if line and not line.startswith("#")
)
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def filled(text: str) -> str:
    """The text with the values of .env, and else its own defaults, in place of the variables."""
    return re.sub(
        r"\$\{(\w+):-([^}]*)\}", lambda match: DEFAULTS.get(match[1], match[2]), str(text)
    )


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_unless_told(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert filled(port).startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_bounds_and_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    if name != "namespaces":
        assert service["deploy"]["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SERVICES)
def test_the_health_of_a_container_is_asked(name: str) -> None:
    service = SERVICES[name]
    target = service.get("build", {}).get("target")
    if target is None:
        assert "healthcheck" in service
    else:
        [stage] = re.findall(rf"^FROM (\S+) AS {target}$", DOCKERFILE, re.MULTILINE)
        base = stage if stage == "runtime" else target
        assert "HEALTHCHECK" in DOCKERFILE.split(f" AS {base}\n")[1].split("\nFROM ")[0]


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_a_replica_has_time_to_drain(name: str) -> None:
    service = SERVICES[name]
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace >= 2 * float(service["environment"]["SEGSTREAM_DRAIN_SECONDS"])


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_the_environment_of_a_replica_sets_what_there_is(name: str) -> None:
    names = (each.removeprefix("SEGSTREAM_").lower() for each in SERVICES[name]["environment"])
    assert set(names) <= set(Settings.model_fields)


def test_the_profiles_have_the_same_services_around_the_replicas() -> None:
    assert DEFAULTS["COMPOSE_PROFILES"] == "cpu"
    with_profiles = {
        name: each["profiles"] for name, each in SERVICES.items() if "profiles" in each
    }
    assert with_profiles == {
        "service": ["cpu"],
        "service-gpu": ["gpu"],
        "triton": ["gpu"],
        "namespaces": ["gpu"],
    }
    # Envoy and Prometheus find either by one name.
    assert "service" in SERVICES["service-gpu"]["networks"]["default"]["aliases"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (ROOT / source).is_dir()


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.is_file():
        pytest.skip("no hadolint here")
    linted = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout
