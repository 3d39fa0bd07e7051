"""Snapshots: a session's memory at rest, and how it is written down."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from segstream.memory.checksummed import RecordError, pack, unpack
from segstream.memory.memory_bank import MemoryBank
from segstream.pages import PageGeometry

_MAGIC = b"SSN1"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

CHUNK_BYTES = 1 << 20
"""Moving a part of this size holds the event loop for less than 1 ms (``benchmarks/spill.py``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The pages of a bank, oldest first: keys and values as in ``Pages``.

    ``state`` is what else the session needs to go on; ``epoch`` that of the lease it was taken
    under.
    """

    model_digest: str
    epoch: int
    next_frame_index: int
    state: bytes
    keys: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, bank: MemoryBank, *, model_digest: str, epoch: int, next_frame_index: int, state: bytes
    ) -> "Snapshot":
        """A copy of what the bank holds; nobody may write to it meanwhile."""
        slots = torch.tensor(bank.slots, device=bank.pages.keys.device)
        keys, values = (
            pool.index_select(0, slots).cpu() for pool in (bank.pages.keys, bank.pages.values)
        )
        return cls(model_digest, epoch, next_frame_index, state, keys, values)

    @property
    def geometry(self) -> PageGeometry:
        _, height, width, key_channels = self.keys.shape
        value_channels = self.values.shape[1:].numel() // (height * width)
        return PageGeometry(height, width, key_channels, value_channels)

    @property
    def num_pages(self) -> int:
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def fits(self, bank: MemoryBank) -> bool:
        """Whether the bank can take these pages bit for bit."""
        return (
            self.geometry == bank.pool.geometry
            and self.keys.dtype == bank.pages.keys.dtype
            and self.num_pages <= bank.memory_length
        )

    def into(self, bank: MemoryBank) -> None:
        """Append the pages to the bank, which they must fit."""
        for key, value in zip(self.keys, self.values, strict=True):
            slot = bank.reserve()
            bank.pages.keys[slot] = key
            bank.pages.values[slot] = value
            bank.commit()
        if bank.pages.keys.is_cuda:
            # An engine in another process does not wait for copies that are under way here.
            torch.cuda.synchronize(bank.pages.keys.device)

    def encode(self) -> list[bytes]:
        """A checksummed record in parts of at most about ``CHUNK_BYTES``.

        The pages go as they are: compressing them would save less than a fifth of the bytes and
        make a spill take up to a third longer (``benchmarks/spill.py``).
        """
        header = {
            "model_digest": self.model_digest,
            "epoch": self.epoch,
            "next_frame_index": self.next_frame_index,
            "state_bytes": len(self.state),
            "num_pages": self.num_pages,
            "dtype": str(self.keys.dtype).removeprefix("torch."),
            "geometry": asdict(self.geometry),
        }
        blocks = (self.state, _to_bytes(self.keys), _to_bytes(self.values))
        return pack(_MAGIC, header, [part for block in blocks for part in _parts(block)])

    @classmethod
    def decode(cls, parts: Sequence[bytes], *, model_digest: str) -> "Snapshot":
        """The inverse of ``encode``. Raises RecordError for one spoilt or of another model."""
        header, payload = unpack(_MAGIC, parts)
        if header["model_digest"] != model_digest:
            raise RecordError("the memory is that of another model")
        dtype = _DTYPES[header["dtype"]]
        geometry = PageGeometry(**header["geometry"])
        num_pages = header["num_pages"]
        data = memoryview(b"".join(payload))
        state_end = header["state_bytes"]
        keys_end = state_end + dtype.itemsize * num_pages * math.prod(geometry.key_shape)
        return cls(
            model_digest,
            header["epoch"],
            header["next_frame_index"],
            bytes(data[:state_end]),
            _to_tensor(data[state_end:keys_end], dtype, (num_pages, *geometry.key_shape)),
            _to_tensor(data[keys_end:], dtype, (num_pages, *geometry.value_shape)),
        )


def _parts(block: bytes) -> Iterator[bytes]:
    view = memoryview(block)
    return (bytes(view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES))


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _to_tensor(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)
