"""How another process finds the pages of a pool, and tells that they are the right ones."""

import json
import math
import secrets
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from segstream.errors import InvalidInputError
from segstream.pages import PageGeometry, Pages

HEADER_BYTES = 4096
"""Before the keys of a shared pool, for its own handle; keeps them on a boundary of pages."""

_FIELD = "pool"


@dataclass(frozen=True, slots=True)
class PoolHandle:
    """A pool that other processes can map: ``region`` names its memory.

    ``token`` is told apart from every other pool's, also where a region's name comes again. A
    shared pool begins with its own handle, then come all keys, then all values. On a GPU the region
    holds the way to the memory, not the memory itself.
    """

    region: str
    geometry: PageGeometry
    num_pages: int
    dtype: torch.dtype
    is_on_gpu: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def num_bytes(self) -> int:
        """Of header, keys and values."""
        return HEADER_BYTES + self.geometry.num_elements * self.num_pages * self.dtype.itemsize

    def encode(self) -> str:
        """One line of text; equal handles have equal texts."""
        fields = {
            "region": self.region,
            "geometry": asdict(self.geometry),
            "num_pages": self.num_pages,
            "dtype": str(self.dtype).removeprefix("torch."),
            "is_on_gpu": self.is_on_gpu,
            "token": self.token,
        }
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> "PoolHandle":
        """The inverse of ``encode``. Raises InvalidInputError."""
        try:
            fields = json.loads(text)
            dtype = getattr(torch, fields.pop("dtype"))
            geometry = PageGeometry(**fields.pop("geometry"))
            handle = cls(dtype=dtype, geometry=geometry, **fields)
            is_sound = (
                isinstance(dtype, torch.dtype)
                and min(handle.num_pages, *asdict(geometry).values()) > 0
                and isinstance(handle.region, str)
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            is_sound = False
        if not is_sound:
            raise InvalidInputError(f"{_FIELD} is {text[:200]!r}: no pool's handle", field=_FIELD)
        return handle

    def pages(self, memory: Tensor) -> Pages:
        """The pages in ``memory (num_bytes,)`` uint8, which is laid out as this handle says."""
        flat = memory[HEADER_BYTES:].view(self.dtype)
        num_keys = self.num_pages * math.prod(self.geometry.key_shape)
        return Pages(
            flat[:num_keys].view(self.num_pages, *self.geometry.key_shape),
            flat[num_keys:].view(self.num_pages, *self.geometry.value_shape),
        )

    def mark(self, memory: Tensor) -> None:
        """Write the handle to the beginning of the memory that it names."""
        memory[:HEADER_BYTES] = self._header().to(memory.device)

    def check(self, memory: Tensor) -> None:
        """Raises InvalidInputError where ``memory`` is not the pool that this handle means."""
        found = memory[:HEADER_BYTES].cpu()
        if not torch.equal(found, self._header()):
            text = bytes(found.numpy()).rstrip(b"\0").decode(errors="replace")
            raise InvalidInputError(
                f"{_FIELD} {self.region!r} is not the one that is meant: its memory says "
                f"{text[:300]!r}, the request {self.encode()!r}",
                field=_FIELD,
            )

    def _header(self) -> Tensor:
        text = self.encode().encode()
        return torch.frombuffer(bytearray(text.ljust(HEADER_BYTES, b"\0")), dtype=torch.uint8)
