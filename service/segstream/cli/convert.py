"""``segstream convert``: a published checkpoint in, one of this project's out."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from segstream.cli.errors import one_line_errors
from segstream.cli.networks import NetworkOption, networks_of
from segstream.cli.output_files import check_checkpoint
from segstream.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from segstream.models.checkpoint import Import


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A published .pth file, or a .safetensors of ours."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT.safetensors", help="The file to write."),
    ],
    memory_length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Frames of memory, T. Default: as published; none where it is untrained."
        ),
    ] = None,
    window_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the window, P; odd. Default: 21.")
    ] = None,
    network: NetworkOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False,
) -> None:
    """Import a checkpoint, and report what came of every key.

    Nothing but tensors is unpickled. A file that lacks keys of its network, has others or other
    shapes is reported and not converted. That of a single-frame network becomes one with a new
    memory, which is not used before segstream train --stage memory has trained it.
    """
    with one_line_errors():
        check_checkpoint(output, "output")
        from segstream.models.checkpoint import import_file, save

        if not checkpoint.is_file():
            raise NotFoundError(f"no file {checkpoint}", field="model")
        imported = import_file(
            checkpoint,
            memory_length=memory_length,
            window_size=window_size,
            networks=networks_of(network),
        )
        if as_json:
            typer.echo(json.dumps(_report(imported), indent=2))
        else:
            _print(imported)
        if imported.faults:
            raise InvalidInputError(
                f"{checkpoint}: {len(imported.faults)} keys do not fit; nothing was written"
            )
        save(imported.model, output)


def _report(imported: "Import") -> dict[str, Any]:
    config = imported.model.config
    return {
        "network": imported.model.spec.name,
        "label_set": config.label_set.name,
        "num_channels": config.num_channels,
        "memory_length": config.stream_length,
        "window_size": config.window_size,
        "fusion": config.fusion,
        "preprocessing": asdict(imported.model.spec.preprocessing),
        "outcomes": Counter(key.outcome.value for key in imported.keys),
        "keys": [asdict(key) for key in imported.keys],
    }


def _print(imported: "Import") -> None:
    console = Console(highlight=False)
    table = Table("key in the file", "outcome", "shape", "name here, or why")
    for key in imported.keys:
        shape = "x".join(map(str, key.shape))
        table.add_row(key.key, key.outcome.value, shape, f"{key.name} {key.note}".strip())
    console.print(table)
    report = _report(imported)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report["outcomes"].items())
    memory = f"{report['memory_length']} frames of memory"
    console.print(f"{report['network']}, {report['label_set']}, {memory}: {outcomes}")
