"""The option by which commands learn of networks that do not come with the package."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segstream.models import NetworkBuilder

NetworkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--network",
        metavar="NAME=MODULE:FUNCTION",
        help="A network of your own that a checkpoint names: the function of an importable module "
        "that makes it, which runs the module's code. May be given several times.",
    ),
]


def networks_of(entries: Sequence[str] | None) -> "Mapping[str, NetworkBuilder]":
    """Builders by name; modules of the working directory are found too, after all others.

    Raises InvalidInputError.
    """
    from segstream.models import import_networks

    if not entries:
        return {}
    sys.path.append(os.getcwd())
    return import_networks(entries)
