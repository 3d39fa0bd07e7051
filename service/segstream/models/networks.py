"""The networks that there are, by name: those that come with the package, and those one adds.

A checkpoint tells its network's name and nothing else: which code the name stands for is said by
whoever loads it.
"""

import importlib
import re
from collections.abc import Iterable, Mapping

from segstream.errors import InvalidInputError, NotFoundError
from segstream.models.erfnet import erfnet
from segstream.models.espnet import espnet
from segstream.models.network import Network, NetworkBuilder
from segstream.models.pspnet import pspnet50, pspnet101

BUILT_IN: Mapping[str, NetworkBuilder] = {
    "erfnet": erfnet,
    "espnet": espnet,
    "pspnet50": pspnet50,
    "pspnet101": pspnet101,
}

_ENTRY = re.compile(r"([\w.-]+)=([A-Za-z_][\w.]*):([A-Za-z_]\w*)", re.ASCII)


def build(name: str, num_channels: int, networks: Mapping[str, NetworkBuilder]) -> Network:
    """The network of this name, among those that come with the package and ``networks``.

    Raises NotFoundError for a name that neither has, and InvalidInputError where the builder makes
    something else than it was asked for.
    """
    builder = BUILT_IN.get(name) or networks.get(name)
    if builder is None:
        raise NotFoundError(
            f"no network {name!r}, there are {sorted({*BUILT_IN, *networks})}; name yours with "
            f"networks, on the command line as --network {name}=MODULE:FUNCTION",
            field="network",
        )
    network = builder(num_channels)
    if not isinstance(network, Network):
        raise InvalidInputError(
            f"network {name!r}: its builder gives a {type(network).__name__}, must give what "
            "segstream.models.adapt gives",
            field="network",
        )
    if (network.spec.name, network.num_channels) != (name, num_channels):
        raise InvalidInputError(
            f"network {name!r} with {num_channels} channels was asked for, its builder gives "
            f"{network.spec.name!r} with {network.num_channels}",
            field="network",
        )
    return network


def import_networks(entries: Iterable[str]) -> dict[str, NetworkBuilder]:
    """Builders by name from entries ``NAME=MODULE:FUNCTION``. This runs the modules' code.

    Raises InvalidInputError for an entry that is none, that cannot be imported, or whose name is
    taken.
    """
    networks: dict[str, NetworkBuilder] = {}
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise InvalidInputError(
                f"network is {entry!r}, must be NAME=MODULE:FUNCTION", field="networks"
            )
        name, module, function = match.groups()
        if name in BUILT_IN or name in networks:
            raise InvalidInputError(f"network {name!r} is there already", field="networks")
        try:
            networks[name] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise InvalidInputError(f"network {entry!r}: {error}", field="networks") from error
    return networks
