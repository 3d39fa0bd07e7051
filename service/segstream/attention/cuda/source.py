"""The kernels' source text."""

import hashlib
from collections.abc import Iterable
from functools import cache

from segstream.attention.cuda.build import KERNEL_DIRECTORY
from segstream.attention.cuda.variants import AMPERE, Variant


@cache
def headers() -> dict[str, str]:
    """File name to text of every kernel header."""
    return {path.name: path.read_text() for path in sorted(KERNEL_DIRECTORY.glob("*.cuh"))}


def translation_unit(variants: Iterable[Variant]) -> str:
    """CUDA C++ that defines one ``extern "C"`` kernel per variant."""
    variants = list(variants)
    lines = [f'#include "{name}"' for name in sorted({v.header for v in variants})]
    for variant in variants:
        if variant.oldest_architecture >= AMPERE:
            lines += ["#if SEGSTREAM_ASYNC_COPY", variant.instance, "#endif"]
        else:
            lines.append(variant.instance)
    return "\n".join(lines) + "\n"


def digest(variants: Iterable[Variant]) -> str:
    """Names everything that a build of these variants depends on, but the compiler."""
    text = "\0".join([*headers(), *headers().values(), translation_unit(variants)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
