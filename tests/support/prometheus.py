"""A real Prometheus that scrapes a service of the test's."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from segstream.bench.local_redis import free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
START_SECONDS = 60.0


def binary(*names: str) -> str:
    """A program of Prometheus, under one of its names, or the test is skipped."""
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip(f"no {names[-1]}: 'make prometheus' installs it where apt and root are at hand")


def run(name: str, *arguments: str | Path) -> str:
    """What such a program says; it must succeed."""
    result = subprocess.run(
        [binary(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query, which must be in order."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def wait_for(self, expression: str) -> None:
        """Until the query has a series."""
        deadline = time.monotonic() + START_SECONDS
        while not self.query(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.1)

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def close(self) -> None:
        self._http.close()

    def _get(self, what: str, **parameters: str) -> Any:
        answer = self._http.get(f"/api/v1/{what}", params=parameters)
        assert answer.status_code == 200, (parameters, answer.text)
        return answer.json()["data"]


@contextmanager
def scraping(
    folder: Path, targets: Sequence[str], *, alertmanager: str = "", patience: str = ""
) -> Iterator[Prometheus]:
    """With the deployment's configuration, but for where the replicas are and how often.

    Alerts go to ``alertmanager``, after ``patience`` instead of the time that they state.
    """
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    config["rule_files"] = [str(folder / RULES.name)]
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"] if patience else ():
        for rule in group["rules"]:
            rule |= {"for": patience} if "alert" in rule else {}
    (folder / RULES.name).write_text(yaml.safe_dump(rules))
    [manager] = config["alerting"]["alertmanagers"][0]["static_configs"]
    manager["targets"] = [alertmanager] if alertmanager else []
    [job] = (job for job in config["scrape_configs"] if job["job_name"] == "segstream")
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    config["scrape_configs"] = [job]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    prometheus = Prometheus(port)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not prometheus.is_ready():
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.05)
        yield prometheus
    finally:
        prometheus.close()
        process.kill()
        process.wait()
