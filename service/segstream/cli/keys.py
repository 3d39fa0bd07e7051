"""``segstream keys``: the file of API keys."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from segstream.cli.errors import one_line_errors
from segstream.doors.keys import (
    KeyRecord,
    Limits,
    create_key,
    read_records,
    replace_key,
    revoke_key,
)
from segstream.errors import InvalidInputError

app = typer.Typer(
    help="Make, list and revoke the API keys of a service, which follows the file: "
    "segstream serve --api-keys FILE.",
    no_args_is_help=True,
)

KeysFile = Annotated[
    Path,
    typer.Option("--file", metavar="FILE", help="The file of keys; it holds only their digests."),
]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as keys list tells it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def create(
    file: KeysFile,
    name: Annotated[str, typer.Option(help="For people: who has the key.")] = "",
    max_sessions: Annotated[
        int | None, typer.Option(min=1, help="Sessions streaming at once, on each replica.")
    ] = None,
    max_frames_per_second: Annotated[
        float | None,
        typer.Option(help="Frames of all its sessions and single images, on each replica."),
    ] = None,
    max_clip_minutes_per_day: Annotated[
        float | None, typer.Option(help="Minutes of uploaded clips each day, on all replicas.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a key, and print it: it cannot be told again."""
    with one_line_errors():
        limits = _limits(
            max_sessions=max_sessions,
            max_frames_per_second=max_frames_per_second,
            max_clip_minutes_per_day=max_clip_minutes_per_day,
        )
        _tell_new(*create_key(file, name, limits), as_json=as_json)


@app.command("list")
def list_(file: KeysFile, as_json: AsJson = False) -> None:
    """Show the keys of a file: all but the keys themselves."""
    with one_line_errors():
        records = list(read_records(file).values())
    if as_json:
        typer.echo(json.dumps({"keys": [_shown(record) for record in records]}))
        return
    table = Table("id", "name", "made", *Limits.model_fields)
    for record in records:
        limits = ("" if value is None else f"{value:g}" for _, value in record.limits)
        table.add_row(record.id, record.name, f"{record.created_at:%Y-%m-%d %H:%M}", *limits)
    Console().print(table)


@app.command()
def renew(file: KeysFile, key_id: KeyId, as_json: AsJson = False) -> None:
    """Give a key another secret, and print it: sessions and clips stay its own."""
    with one_line_errors():
        _tell_new(*replace_key(file, key_id), as_json=as_json)


@app.command()
def revoke(file: KeysFile, key_id: KeyId) -> None:
    """Take a key out of a file; running services end its sessions within seconds."""
    with one_line_errors():
        record = revoke_key(file, key_id)
    typer.echo(f"Revoked {record.id} {record.name}".rstrip())


def _limits(**values: float | None) -> Limits:
    try:
        return Limits(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise InvalidInputError(
            f"{name} is {first['input']!r}: {first['msg']}", field=name
        ) from error


def _tell_new(key: str, record: KeyRecord, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": key, **_shown(record)}))
        return
    typer.echo(key)
    typer.echo(
        f"Key {record.id}: keep it now, it is not stored and cannot be shown again.", err=True
    )


def _shown(record: KeyRecord) -> dict[str, object]:
    return record.model_dump(mode="json", exclude={"sha256"})
