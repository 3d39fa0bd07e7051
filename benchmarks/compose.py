"""What the clients of `docker compose up` notice when it is scaled, killed, drained and restarted.

    make compose-test

Builds the image, starts what docker-compose.yml says with two replicas, and streams sessions of a
real video through Envoy with the Python client, while the commands of docs/operate.md scale to four
and back, kill a container, drain one, and restart Envoy and Redis. Every label map is compared with
that of an undisturbed run. The sessions send at a steady rate and are worked on at a small height,
so that the machine bears them beside the starting of containers. Containers are removed at the end,
volumes stay. Prints the same figures as benchmarks/handoff.py, and exits with 1 as it does.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from segstream.bench.drills import Drills, Load, is_clean, make_parser, parse, show

ROOT = Path(__file__).parent.parent
ADDRESS = "127.0.0.1:50051"
COMMAND_SECONDS = 900.0
RESTART_SECONDS = 3.0  # a supervisor's back-off

START = ("docker compose build service", "docker compose up --wait --scale service=2")
DRILLS = {
    "scale_out": ("docker compose up --wait --no-recreate --scale service=4",),
    "scale_in": ("docker compose up --wait --no-recreate --scale service=2",),
    "kill": ("docker kill segstream-service-1", "docker start segstream-service-1"),
    "drain": ("docker stop segstream-service-1", "docker start segstream-service-1"),
    "envoy_restart": ("docker compose restart envoy",),
    "redis_restart": ("docker compose restart redis",),
}
LOOK = (
    "docker compose ps",
    "curl --fail --silent http://127.0.0.1:8080/readyz",
    "curl --fail --silent http://127.0.0.1:9090/-/ready",
    "docker compose logs --tail 5 service",
)
STOP = ("docker compose down",)


class CommandError(Exception):
    """A command of the guide failed; its last words."""


def shell(command: str, console: Console) -> str:
    """Run one command of the guide as it stands there."""
    started = time.monotonic()
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    console.print(f"$ {command}  [dim]{time.monotonic() - started:.1f} s[/dim]", highlight=False)
    if result.returncode:
        told = "\n".join((result.stdout + result.stderr).splitlines()[-20:])
        raise CommandError(f"{command} ended with {result.returncode}:\n{told}")
    return result.stdout


def disturbance(commands: tuple[str, ...], console: Console) -> Callable[[], None]:
    def disturb() -> None:
        for number, command in enumerate(commands):
            if number:
                time.sleep(RESTART_SECONDS)
            shell(command, console)

    return disturb


def wait_until_healthy(console: Console) -> None:
    """All that was started; a container that was started again needs a while."""
    deadline = time.monotonic() + COMMAND_SECONDS
    while time.monotonic() < deadline:
        listed = subprocess.run(
            ["docker", "compose", "ps", "--format", "{{.Service}} {{.Health}}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        if listed and all(line.endswith(" healthy") for line in listed):
            return
        time.sleep(0.5)
    raise CommandError(f"not all is healthy: {', '.join(listed)}")


def main() -> None:
    parser = make_parser(__doc__, DRILLS, ROOT, num_frames=60, frames_per_second=2.0)
    options = parse(parser, DRILLS)
    console = Console(stderr=True, soft_wrap=True)
    try:
        for command in START:
            shell(command, console)
        drills = Drills(
            ADDRESS, Load.of(options), lambda: wait_until_healthy(console), console
        ).run({name: disturbance(DRILLS[name], console) for name in options.drills})
        for command in LOOK:
            console.print(shell(command, console), highlight=False, markup=False)
    except CommandError as error:
        console.print(str(error), markup=False)
        sys.exit(1)
    finally:
        for command in STOP:
            shell(command, console)
    if options.json:
        print(json.dumps({"drills": drills}, indent=2))
    else:
        show(drills, f"{options.sessions} sessions in containers, {options.clip.name}")
    sys.exit(0 if all(map(is_clean, drills)) else 1)


if __name__ == "__main__":
    main()
