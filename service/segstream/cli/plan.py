"""``segstream plan``: how many replicas a load needs, and where it would break first."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from segstream.cli.errors import one_line_errors
from segstream.cli.frame_size import parse_size
from segstream.cli.output_files import check_writable

if TYPE_CHECKING:
    from segstream.planning.growth import Stage
    from segstream.planning.plan import Plan
    from segstream.planning.profile import MachineProfile

_GIB, _MIB, _MEGABIT = 2**30, 2**20, 1e6 / 8


def plan(
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that stream at once.")],
    fps: Annotated[float, typer.Option(min=0.01, help="Frames per second of each session.")],
    slo_ms: Annotated[
        float, typer.Option(min=1, help="95 of 100 frames are to be answered within this time.")
    ],
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Height and width of the frames to measure with.")
    ] = "360x480",
    model: Annotated[
        str, typer.Option(help="Checkpoint to measure. Default: the service's default one.")
    ] = "",
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, ...")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of a replica's forward.")] = 1,
    cores: Annotated[
        float, typer.Option(min=0, help="Cores of a replica; 0: as many as it has threads.")
    ] = 0,
    spare: Annotated[
        int, typer.Option(min=0, help="Replicas that may be down without harm to the objective.")
    ] = 1,
    profile_file: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Take the figures from here; measure not."),
    ] = None,
    save_profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep what was measured, for --profile elsewhere."),
    ] = None,
    compose_file: Annotated[
        Path | None,
        typer.Option(
            "--compose", metavar="FILE", help="Write the plan as an override for docker compose."
        ),
    ] = None,
    is_grown: Annotated[
        bool,
        typer.Option(
            "--simulate", help="Let the load grow and replicas die, and tell what is used up first."
        ),
    ] = False,
    mtbf: Annotated[
        float, typer.Option(min=1, help="With --simulate: seconds between a replica's deaths.")
    ] = 600,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object.")
    ] = False,
) -> None:
    """Compute replicas, memory and bandwidth for a load and a latency objective.

    What frames cost is measured here on a real replica, or taken from a profile that was measured
    on the machine meant. Everything else follows from a simulation of the service.
    """
    from segstream.planning.compose_values import write_compose_values
    from segstream.planning.growth import grow
    from segstream.planning.measurement import measure_profile
    from segstream.planning.plan import Objective, make_plan
    from segstream.planning.profile import read_profile, write_profile

    with one_line_errors():
        for path, name in ((save_profile, "save-profile"), (compose_file, "compose")):
            if path is not None:
                check_writable(path, name)
        height, width = parse_size(size)
        objective = Objective(sessions, fps, slo_ms, spare)
        with Console(stderr=True).status("preparing") as status:
            profile = (
                read_profile(profile_file)
                if profile_file is not None
                else measure_profile(
                    height,
                    width,
                    model=model,
                    device=device,
                    threads=threads,
                    progress=status.update,
                )
            )
            if save_profile is not None:
                write_profile(profile, save_profile)
            chosen = make_plan(
                profile,
                objective,
                cores_per_replica=cores or profile.threads,
                progress=status.update,
            )
            stages = (
                grow(
                    profile,
                    objective,
                    chosen,
                    seconds_between_failures=mtbf,
                    progress=status.update,
                )
                if is_grown
                else []
            )
        if compose_file is not None:
            write_compose_values(chosen, compose_file)
        if as_json:
            typer.echo(json.dumps(_as_dict(profile, chosen, stages), indent=2))
        else:
            _print(profile, objective.num_sessions, chosen, stages)


def _as_dict(profile: "MachineProfile", plan: "Plan", stages: "list[Stage]") -> dict[str, Any]:
    return {
        "profile": profile.model_dump(),
        "plan": plan.as_dict(),
        "growth": [stage.as_dict() for stage in stages],
    }


def _print(
    profile: "MachineProfile", num_sessions: int, plan: "Plan", stages: "list[Stage]"
) -> None:
    console = Console(width=max(100, Console().width))
    table = Table("", "", title=f"{num_sessions} sessions of {profile.size}", show_header=False)
    for name, value in _lines(profile, plan):
        table.add_row(name, value)
    console.print(table)
    if not stages:
        return
    growth = Table(
        *("sessions", "replicas", "died", "moved", "p95 ms", "p99 ms"),
        *("engines", "Redis", "network"),
        title="As the load grows",
        box=box.SIMPLE,
    )
    for stage in stages:
        growth.add_row(
            *(str(number) for number in (stage.num_sessions, stage.num_replicas)),
            *(str(number) for number in (stage.num_failures, stage.num_moved)),
            *(f"{value:.0f}" for value in (stage.p95_ms, stage.p99_ms)),
            *(f"{100 * value:.0f} %" for value in (stage.engine, stage.redis, stage.network)),
        )
    console.print(growth)
    console.print(f"First limit: {stages[-1].first_limit}")


def _lines(profile: "MachineProfile", plan: "Plan") -> list[tuple[str, str]]:
    network = plan.network_in_bytes_per_second, plan.network_out_bytes_per_second
    return [
        (
            "a forward",
            f"{profile.forward_fixed_ms:.1f} + {profile.forward_frame_ms:.1f} ms a frame",
        ),
        ("overhead of a frame", f"{profile.overhead_ms:.1f} ms"),
        ("replicas", str(plan.num_replicas)),
        ("sessions that one bears", str(plan.sessions_per_replica)),
        ("sessions on the fullest", str(plan.fullest_replica)),
        ("predicted p95", f"{plan.predicted_p95_ms:.0f} ms"),
        ("engine in use", f"{100 * plan.engine_utilisation:.0f} %"),
        ("cores per replica", f"{plan.cores_per_replica:g}"),
        ("memory per replica", f"{plan.memory_bytes_per_replica / _GIB:.2f} GiB"),
        ("of it memory banks", f"{plan.memory_bank_bytes_per_replica / _MIB:.0f} MiB"),
        ("Redis memory", f"{plan.redis_bytes / _GIB:.2f} GiB"),
        ("Redis bandwidth", f"{plan.redis_bytes_per_second / _MIB:.1f} MiB/s"),
        ("network in, out", ", ".join(f"{rate / _MEGABIT:.0f} Mbit/s" for rate in network)),
    ]
