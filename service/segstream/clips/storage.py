"""Files of clips, in a local directory or wherever fsspec reaches.

Everything here blocks: it is called from threads. Paths are relative to the root; only code makes
them, of checked ids and fixed names.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from segstream.errors import InvalidInputError

_FIELD = "clip_storage"


class ClipStorage:
    """Whole files that appear under their names complete, or not at all.

    ``url`` is a directory, or ``s3://bucket/prefix`` and the like. Raises InvalidInputError if
    fsspec does not know it.
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise InvalidInputError(f"{_FIELD} is {url!r}: {error}", field=_FIELD) from error
        self._is_local = isinstance(self._fs, LocalFileSystem)

    @property
    def directory(self) -> Path | None:
        """The root, if it is a directory of this machine."""
        return Path(self._root) if self._is_local else None

    def create(self, path: str, data: bytes) -> bool:
        """Write a new file; False, changing nothing, if there is one already."""
        try:
            if self._is_local:
                self._create_locally(path, data)
            else:
                self._fs.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, in place of the one that may be there."""
        with self.writer(path) as file:
            file.write(data)

    @contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """A stream into a file, which is there when the block ends well and is not otherwise."""
        if self._is_local:
            with self._part(path) as part:
                with part.open("wb") as local:
                    yield local
                os.replace(part, self._full(path))
            return
        remote = self._fs.open(self._full(path), "wb", autocommit=False)
        try:
            yield cast(IO[bytes], remote)
        except BaseException:
            remote.discard()
            remote.closed = True  # or it would still be written when it is collected
            raise
        remote.close()
        remote.commit()

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        return cast(bytes, self._fs.cat_file(self._full(path)))

    def read_if_there(self, path: str) -> bytes | None:
        """None if there is no such file."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def open(self, path: str) -> IO[bytes]:
        """A seekable stream out of a file. Raises FileNotFoundError."""
        return cast(IO[bytes], self._fs.open(self._full(path), "rb"))

    def size(self, path: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return int(self._fs.size(self._full(path)))

    def names(self, path: str = "") -> list[str]:
        """What lies directly under ``path``, sorted; nothing if it does not exist."""
        try:
            found = self._fs.ls(self._full(path), detail=False)
        except FileNotFoundError:
            return []
        names = (name.rstrip("/").rsplit("/", 1)[-1] for name in found)
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, path: str) -> None:
        """A file, or a folder with all that is in it; it need not exist."""
        if self._is_local:
            full = Path(self._full(path))
            if full.is_dir():
                shutil.rmtree(full, ignore_errors=True)
            else:
                full.unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            self._fs.rm(self._full(path), recursive=True)

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """The file on this machine: itself where it is here, a copy for the time of the block."""
        if self._is_local:
            yield Path(self._full(path))
            return
        with tempfile.TemporaryDirectory(prefix="segstream-clip-") as folder:
            copy = Path(folder, "clip")
            self._fs.get_file(self._full(path), str(copy))
            yield copy

    def put_file(self, source: Path, path: str) -> None:
        """Copy a local file in, as it is."""
        with self.writer(path) as target, source.open("rb") as file:
            shutil.copyfileobj(file, target)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else cast(str, self._root)

    def _create_locally(self, path: str, data: bytes) -> None:
        with self._part(path) as part:
            part.write_bytes(data)
            os.link(part, self._full(path))

    @contextmanager
    def _part(self, path: str) -> Iterator[Path]:
        """A file beside the one it is to become; what is left of it goes with the block."""
        full = Path(self._full(path))
        full.parent.mkdir(parents=True, exist_ok=True)
        part = full.with_name(f".{full.name}.{uuid.uuid4().hex}.part")
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


def copy_blocks(source: IO[bytes], num_bytes: int, block_bytes: int) -> Iterator[bytes]:
    """The next ``num_bytes`` of a stream, block by block."""
    while num_bytes > 0 and (block := source.read(min(block_bytes, num_bytes))):
        num_bytes -= len(block)
        yield block
