"""Loads the package's C++ kernels: shared libraries with a C interface, built when it is."""

import ctypes
import logging
from enum import IntEnum
from pathlib import Path

_log = logging.getLogger(__name__)


class Isa(IntEnum):
    """Instruction sets that kernels are compiled for; ``SegstreamIsa`` in csrc/isa.h."""

    BEST = 0
    BASELINE = 1
    X86_64_V3 = 2
    X86_64_V4 = 3


def load(path: Path, what: str, *, abi: int, instead: str) -> ctypes.CDLL | None:
    """The library, or None with a warning in the log where there is none that works.

    what: its name in its functions, ``segstream_<what>_abi`` among them, and in the warning.
    abi: the version of its interface that the caller knows.
    instead: what the caller will do without it, for the warning.
    """
    try:
        library = ctypes.CDLL(str(path))
        found: int = getattr(library, f"segstream_{what}_abi")()
    except (OSError, AttributeError) as error:
        _log.warning("no CPU %s kernel (%s): %s", what, error, instead)
        return None
    if found != abi:
        _log.warning(
            "the CPU %s kernel has interface %d instead of %d: %s; reinstall segstream to build it "
            "anew",
            *(what, found, abi, instead),
        )
        return None
    return library
