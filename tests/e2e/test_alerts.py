"""An alert from the service's figures to the operator: Prometheus, Alertmanager, a webhook."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from segstream.bench.local_redis import free_port
from tests.support.process import serving
from tests.support.prometheus import DEPLOY, binary, scraping

WAIT_SECONDS = 120.0
ALERTMANAGER = "prometheus-alertmanager", "alertmanager"  # Debian's name, and its own


@contextmanager
def webhook() -> Iterator[tuple[str, "SimpleQueue[dict[str, Any]]"]]:
    told: SimpleQueue[dict[str, Any]] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            told.put(json.loads(body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving_thread = threading.Thread(target=server.serve_forever)
    serving_thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", told
    finally:
        server.shutdown()
        serving_thread.join()
        server.server_close()


@contextmanager
def alertmanager(folder: Path, url: str) -> Iterator[str]:
    """With the deployment's configuration, its pages going to ``url``, and without its patience."""
    config = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    [page] = (receiver for receiver in config["receivers"] if receiver["name"] == "page")
    page["webhook_configs"] = [{"url": url}]
    file = folder / "alertmanager.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            binary(*ALERTMANAGER),
            f"--config.file={file}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def test_a_replica_that_is_killed_reaches_the_operator(checkpoint: Path, tmp_path: Path) -> None:
    with (
        webhook() as (url, told),
        alertmanager(tmp_path, url) as address,
        serving(tmp_path, "--model", checkpoint) as service,
    ):
        target = service.http_url.removeprefix("http://")
        with scraping(tmp_path, [target], alertmanager=address, patience="1s") as prometheus:
            prometheus.wait_for(f'up{{instance="{target}"}} == 1')
            service.process.kill()
            names: set[str] = set()
            while "SegstreamDown" not in names:
                page = told.get(timeout=WAIT_SECONDS)
                assert page["receiver"] == "page"
                names |= {alert["labels"]["alertname"] for alert in page["alerts"]}
            [alert] = (a for a in page["alerts"] if a["labels"]["alertname"] == "SegstreamDown")
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/SegstreamDown.md"
    assert names <= {"SegstreamDown", "SegstreamReplicaDown"}
