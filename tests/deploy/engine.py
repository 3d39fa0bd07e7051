"""Runs a command where there is a Docker engine.

    python -m tests.deploy.engine COMMAND [ARGUMENT ...]

With the machine's own engine if it has one. Else, as root on Debian, with one that is installed
and started for the command alone: in its own network namespace, so that nothing of the machine's
network is touched, and with images made from packages where no registry can be reached. What it
made is kept in build/containers for the next time.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.deploy.debian import ENGINE_PACKAGES, fetch_plugins, install, run
from tests.deploy.stand_ins import ROOT, make_images, write_override

FOLDER = ROOT / "build" / "containers"
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class NoEngineError(Exception):
    """There is no Docker engine, nor can one be had; says why."""


def main(command: list[str]) -> int:
    """The command's exit code."""
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if _has_engine():
            return subprocess.run(command, check=False).returncode
        _check_can_be_had()
        with _own_engine() as namespace:
            entered = ["nsenter", f"--net=/run/netns/{namespace}", *command]
            return subprocess.run(entered, check=False).returncode
    except NoEngineError as error:
        print(f"not run: {error}", file=sys.stderr)
        return 1


def _has_engine() -> bool:
    """Whether a client, Compose v2 and an engine that answers are there."""
    return bool(shutil.which("docker")) and all(
        subprocess.run(["docker", *words], capture_output=True, check=False).returncode == 0
        for words in (["compose", "version"], ["info"])
    )


def _check_can_be_had() -> None:
    if sys.platform != "linux" or shutil.which("apt-get") is None:
        raise NoEngineError("no Docker engine with Compose v2 answers, and no apt-get to get one")
    if os.geteuid() != 0:
        raise NoEngineError(
            "no Docker engine with Compose v2 answers, and installing and starting one takes root"
        )


@contextmanager
def _own_engine() -> Iterator[str]:
    """The name of the network namespace in which its containers can be reached."""
    namespace = f"segstream-{os.getpid()}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        if not all(map(shutil.which, ("dockerd", "docker", "ip", "iptables", "mmdebstrap"))):
            _say("installing a Docker engine")
            install(*ENGINE_PACKAGES)
        override = FOLDER / "compose.yml"
        write_override(override)
        os.environ |= {
            "DOCKER_HOST": f"unix://{FOLDER / 'docker.sock'}",
            "DOCKER_CONFIG": str(fetch_plugins(FOLDER)),
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_FILE": f"{ROOT / 'docker-compose.yml'}:{override}",
        }
        run("ip", "netns", "add", namespace)
    except (OSError, RuntimeError) as error:
        raise NoEngineError(str(error)) from error
    try:
        run("nsenter", f"--net=/run/netns/{namespace}", "ip", "link", "set", "lo", "up")
        with _daemon(namespace):
            _say("making images in place of those of a registry")
            make_images(FOLDER)
            yield namespace
    finally:
        subprocess.run(["ip", "netns", "delete", namespace], check=False)


@contextmanager
def _daemon(namespace: str) -> Iterator[None]:
    # Not `ip netns exec`: that mounts another /sys, in which the engine finds no cgroups.
    command: list[str | os.PathLike[str]] = [
        *("nsenter", f"--net=/run/netns/{namespace}", "dockerd"),
        *("--data-root", FOLDER / "docker", "--exec-root", FOLDER / "exec"),
        *("-H", os.environ["DOCKER_HOST"], "--pidfile", FOLDER / "docker.pid"),
        *("--storage-driver", "overlay2"),
    ]
    log = FOLDER / "dockerd.log"
    with log.open("wb") as sink:
        daemon = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _has_engine():
            if daemon.poll() is not None or time.monotonic() > deadline:
                told = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise NoEngineError(f"the Docker engine did not start:\n{told}")
            time.sleep(0.2)
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
