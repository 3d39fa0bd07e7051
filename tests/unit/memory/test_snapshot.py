"""Snapshots and frame-log entries: the same bits, or nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segstream.memory.checksummed import RecordError
from segstream.memory.frame_log import START, LoggedFrame
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from segstream.memory.snapshot import CHUNK_BYTES, Snapshot
from segstream.pages import PageGeometry

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GEOMETRIES = st.builds(
    PageGeometry,
    *(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
    st.integers(1, 4) | st.sampled_from([64, 192]),  # the last in blocks
)


def random_bank(
    geometry: PageGeometry, dtype: torch.dtype, num_frames: int, seed: int = 0
) -> MemoryBank:
    """Pages of random bits: NaNs with payloads, infinities and subnormals among them."""
    pool = PagePool(geometry, 5, DeviceStorage(dtype))
    generator = torch.Generator().manual_seed(seed)
    for tensor in (pool.pages.keys, pool.pages.values):
        raw = tensor.view(torch.uint8)
        raw.copy_(torch.randint(0, 256, raw.shape, generator=generator))
    bank = MemoryBank(pool, 3)
    for _ in range(num_frames):
        bank.reserve()
        bank.commit()
    return bank


def snapshot_of(bank: MemoryBank, state: bytes = b"state") -> Snapshot:
    return Snapshot.of(bank, model_digest="abc", epoch=7, next_frame_index=42, state=state)


def bits(bank: MemoryBank) -> list[bytes]:
    return [
        pool[slot].contiguous().view(torch.uint8).numpy().tobytes()
        for slot in bank.slots
        for pool in (bank.pages.keys, bank.pages.values)
    ]


@given(
    geometry=GEOMETRIES,
    dtype=st.sampled_from(DTYPES),
    num_frames=st.integers(1, 7),
    state=st.binary(max_size=100),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_what_was_spilled_comes_back_bit_for_bit(
    geometry: PageGeometry, dtype: torch.dtype, num_frames: int, state: bytes, seed: int
) -> None:
    bank = random_bank(geometry, dtype, num_frames, seed)
    stored = snapshot_of(bank, state).encode()
    restored = Snapshot.decode(stored, model_digest="abc")
    assert (restored.epoch, restored.next_frame_index, restored.state) == (7, 42, state)
    other = MemoryBank(PagePool(geometry, 4, DeviceStorage(dtype)), 3)
    assert restored.fits(other)
    restored.into(other)
    assert bits(other) == bits(bank)
    joined = Snapshot.decode([b"".join(stored)], model_digest="abc")
    assert torch.equal(joined.keys.view(torch.uint8), restored.keys.view(torch.uint8))


def test_large_snapshots_go_in_parts() -> None:
    bank = random_bank(PageGeometry(64, 64, 16, 64), torch.float32, 3)
    parts = snapshot_of(bank).encode()
    assert len(parts) > 3
    assert max(map(len, parts)) <= CHUNK_BYTES


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_a_single_spoilt_bit_is_noticed(at: float, bit: int) -> None:
    stored = bytearray(b"".join(snapshot_of(random_bank(GEOMETRY, torch.float32, 2)).encode()))
    stored[int(at * len(stored))] ^= 1 << bit
    with pytest.raises(RecordError):
        Snapshot.decode([bytes(stored)], model_digest="abc")


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_a_record_cut_short_is_noticed(share: float) -> None:
    stored = b"".join(snapshot_of(random_bank(GEOMETRY, torch.float32, 2)).encode())
    with pytest.raises(RecordError):
        Snapshot.decode([stored[: int(share * len(stored))]], model_digest="abc")


def test_memory_of_another_model_is_refused() -> None:
    stored = snapshot_of(random_bank(GEOMETRY, torch.float32, 2)).encode()
    with pytest.raises(RecordError, match="another model"):
        Snapshot.decode(stored, model_digest="abd")


@pytest.mark.parametrize(
    ("geometry", "dtype", "memory_length"),
    [
        (PageGeometry(2, 3, 2, 5), torch.float32, 3),
        (PageGeometry(2, 3, 2, 4), torch.float16, 3),
        (PageGeometry(2, 3, 2, 4), torch.float32, 1),
    ],
)
def test_pages_fit_no_other_bank(
    geometry: PageGeometry, dtype: torch.dtype, memory_length: int
) -> None:
    snapshot = snapshot_of(random_bank(GEOMETRY, torch.float32, 2))
    assert not snapshot.fits(MemoryBank(PagePool(geometry, 4, DeviceStorage(dtype)), memory_length))


FRAME = LoggedFrame(5, START, "jpeg", 480, 360, b"\xff\xd8" * 50, "abc")


def test_logged_frame_comes_back() -> None:
    assert LoggedFrame.decode(FRAME.encode(), model_digest="abc") == FRAME


def test_frame_of_another_model_is_refused() -> None:
    with pytest.raises(RecordError, match="another model"):
        LoggedFrame.decode(FRAME.encode(), model_digest="abd")


def test_snapshot_is_no_frame() -> None:
    stored = snapshot_of(random_bank(GEOMETRY, torch.float32, 2)).encode()
    with pytest.raises(RecordError, match="of kind"):
        LoggedFrame.decode(b"".join(stored), model_digest="abc")


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_spoilt_frame_is_noticed(at: float, bit: int) -> None:
    stored = bytearray(FRAME.encode())
    stored[int(at * len(stored))] ^= 1 << bit
    with pytest.raises(RecordError):
        LoggedFrame.decode(bytes(stored), model_digest="abc")


GEOMETRY = PageGeometry(2, 3, 2, 4)
