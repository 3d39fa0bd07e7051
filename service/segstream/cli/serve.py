"""``segstream serve``: the service, with the engine in this process."""

from collections.abc import Iterator
from inspect import Parameter, Signature
from typing import Any

import typer
from pydantic import ValidationError
from rich.markup import escape

from segstream.cli.errors import one_line_errors
from segstream.errors import InvalidInputError
from segstream.settings import Settings
from segstream.telemetry.logging import configure_logging


def serve(**options: Any) -> None:
    """Serve video segmentation over gRPC and HTTP until SIGTERM or Ctrl-C.

    Each option may be set in the environment instead; one given here goes first.
    """
    with one_line_errors():
        from segstream.cli.serving import run_service

        settings = _settings({name: value for name, value in options.items() if value is not None})
        configure_logging(settings.log_format, settings.log_level)
        run_service(settings)


def _options() -> Iterator[Parameter]:
    """An option for every setting; the default is left to the settings."""
    for name, field in Settings.model_fields.items():
        is_list = isinstance(field.default, list)
        flag = f"--{(name.removesuffix('s') if is_list else name).replace('_', '-')}"
        text = f"{field.description} May be given several times." if is_list else field.description
        option = typer.Option(None, flag, help=f"{text} {escape(_source(name))}")
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=option, annotation=field.annotation)


def _source(name: str) -> str:
    field = Settings.model_fields[name]
    default = field.default
    if isinstance(default, list):
        default = ",".join(default)
    is_told = default not in (None, "") and field.default_factory is None
    told = f"default: {default}; " if is_told else ""
    return f"[{told}env: SEGSTREAM_{name.upper()}]"


def _settings(options: dict[str, Any]) -> Settings:
    try:
        return Settings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        fault = first["msg"].removeprefix("Value error, ")
        # Faults of several settings together name them, and their input is everything.
        told = f"{name} is {first['input']!r}: {fault}" if name else fault
        raise InvalidInputError(told, field=name) from error


# Typer reads a command's options off its signature.
serve.__signature__ = Signature(list(_options()))  # type: ignore[attr-defined]
