import gc
from contextlib import suppress
from pathlib import Path
from threading import Barrier, Thread

import pytest

from segstream.clips.storage import ClipStorage, copy_blocks
from segstream.errors import InvalidInputError


@pytest.fixture(params=["local", "s3"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> ClipStorage:
    is_local = request.param == "local"
    return ClipStorage(str(tmp_path) if is_local else request.getfixturevalue("s3_url"))


def test_a_file_is_created_once(any_storage: ClipStorage) -> None:
    assert any_storage.create("a/b", b"first")
    assert not any_storage.create("a/b", b"second")
    assert any_storage.read("a/b") == b"first"
    assert any_storage.size("a/b") == 5


def test_a_file_is_replaced_whole(any_storage: ClipStorage) -> None:
    any_storage.replace("a", b"long ago")
    any_storage.replace("a", b"now")
    assert any_storage.read("a") == b"now"


def test_a_stream_that_fails_leaves_no_file(any_storage: ClipStorage) -> None:
    with suppress(KeyError), any_storage.writer("a/clip") as file:
        file.write(b"half")
        raise KeyError
    gc.collect()
    assert any_storage.names("a") == []
    assert any_storage.read_if_there("a/clip") is None


def test_a_large_stream_can_be_read_from_the_middle(any_storage: ClipStorage) -> None:
    block = bytes(range(256)) * 4096
    with any_storage.writer("clip") as file:
        for _ in range(7):
            file.write(block)
    with any_storage.open("clip") as source:
        source.seek(len(block) * 6 + 3)
        assert b"".join(copy_blocks(source, 10, 4)) == block[3:13]


def test_names_are_those_directly_below(any_storage: ClipStorage) -> None:
    for path in ("b/2", "b/1", "b/deep/3", "c"):
        any_storage.create(path, b"x")
    assert any_storage.names("b") == ["1", "2", "deep"]
    assert any_storage.names() == ["b", "c"]
    assert any_storage.names("nowhere") == []


def test_removal_takes_files_and_folders_and_minds_nothing_missing(
    any_storage: ClipStorage,
) -> None:
    for path in ("b/1", "b/deep/3", "c"):
        any_storage.create(path, b"x")
    any_storage.remove("b")
    any_storage.remove("c")
    any_storage.remove("c")
    assert any_storage.names() == []


def test_a_local_copy_has_the_bytes(any_storage: ClipStorage) -> None:
    any_storage.create("clip", b"frames")
    with any_storage.local_copy("clip") as path:
        assert path.read_bytes() == b"frames"
    with pytest.raises(FileNotFoundError):
        any_storage.read("other")


def test_of_many_that_create_a_file_one_does(storage: ClipStorage) -> None:
    barrier, winners = Barrier(8), []

    def create(number: int) -> None:
        barrier.wait()
        if storage.create("chunk", b"%d" % number):
            winners.append(number)

    threads = [Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = winners
    assert storage.read("chunk") == b"%d" % winner
    assert storage.directory is not None
    assert [path.name for path in storage.directory.iterdir()] == ["chunk"]


def test_a_storage_that_fsspec_does_not_know() -> None:
    with pytest.raises(InvalidInputError, match="clip_storage is 'nonsense://x'"):
        ClipStorage("nonsense://x")
