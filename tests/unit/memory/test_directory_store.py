import asyncio
import os
import stat
from pathlib import Path

import pytest

from segstream.errors import InvalidInputError
from segstream.memory.directory_store import DirectoryStore
from segstream.memory.spill_store import StoreUnavailableError

PARTS = [b"header", b"x" * 1000]


async def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    for number in range(2):
        store = DirectoryStore(tmp_path / "spill", max_bytes=10_000)
        if not number:
            await store.save("a:b.c-d", 1, PARTS)
        assert await store.load("a:b.c-d") == [b"".join(PARTS)]
        assert await store.load("other") is None
        await store.close()


async def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "spill", max_bytes=10_000)
    await store.save("a", 1, PARTS)
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (tmp_path / "spill").iterdir()]
    assert stat.S_IMODE((tmp_path / "spill").stat().st_mode) == 0o700
    assert modes == [0o600, 0o600]
    await store.close()


async def test_the_oldest_go_when_it_is_full(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, max_bytes=3 * 1006)
    for number, name in enumerate("abcd"):
        await store.save(name, 1, PARTS)
        os.utime(tmp_path / f"{name}.snapshot", (number, number))
    assert [await store.load(name) is not None for name in "abcd"] == [False, True, True, True]
    await store.save("b", 1, PARTS)
    assert [await store.load(name) is not None for name in "bcd"] == [True, True, True]
    await store.close()


async def test_sessions_may_be_saved_and_forgotten_at_the_same_time(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, max_bytes=1 << 20)
    try:
        for _ in range(5):
            saves = (store.save(f"s{number}", 1, [b"x" * 100]) for number in range(20))
            forgets = (store.forget(f"f{number}", 1) for number in range(20))
            await asyncio.gather(*saves, *forgets)
            for number in range(20):
                assert await store.load(f"s{number}") == [b"x" * 100]
            saves = (store.save(f"f{number}", 1, [b"x"]) for number in range(20))
            await asyncio.gather(*saves)
    finally:
        await store.close()


async def test_a_snapshot_beyond_the_bound_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, max_bytes=1500)
    await store.save("a", 1, PARTS)
    with pytest.raises(StoreUnavailableError, match="max_spill_bytes 1500"):
        await store.save("b", 1, [*PARTS, *PARTS])
    assert await store.load("a") is not None
    await store.close()


async def test_what_a_crash_left_unfinished_is_cleared_away(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, max_bytes=10_000)
    await store.save("a", 1, PARTS)
    await store.close()
    (tmp_path / "b.tmp").write_bytes(b"x" * 1000)
    store = DirectoryStore(tmp_path, max_bytes=10_000)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.snapshot"]
    await store.close()


async def test_forgotten_is_gone(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, max_bytes=10_000)
    await store.save("a", 1, PARTS)
    await store.forget("a", 1)
    await store.forget("a", 1)
    assert await store.load("a") is None
    await store.close()


async def test_two_services_cannot_have_one_directory(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, max_bytes=1)
    with pytest.raises(InvalidInputError, match="no other service's"):
        DirectoryStore(tmp_path, max_bytes=1)
    await store.close()
    await DirectoryStore(tmp_path, max_bytes=1).close()


async def test_a_temporary_directory_goes_with_the_store() -> None:
    store = DirectoryStore(None, max_bytes=10_000)
    assert store._path is not None
    await store.save("a", 1, PARTS)
    await store.close()
    assert not store._path.exists()


async def test_epochs_rise() -> None:
    store = DirectoryStore(None, max_bytes=10_000)
    epochs = [(await store.claim("a", "me")).epoch for _ in range(3)]
    assert epochs == sorted(set(epochs))
    await store.close()
