from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from segstream.clips.library import ClipLibrary
from segstream.clips.storage import ClipStorage


@pytest.fixture
def storage(tmp_path: Path) -> ClipStorage:
    return ClipStorage(str(tmp_path / "clips"))


@pytest.fixture
def library(storage: ClipStorage) -> ClipLibrary:
    return ClipLibrary(storage, ttl_seconds=60.0)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server that speaks S3, with a bucket."""
    pytest.importorskip("s3fs", reason="no s3fs here: pip install 'segstream[s3]'")
    server_module = pytest.importorskip("moto.server", reason="no moto here")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix of a bucket, to be reached with what fsspec is configured with."""
    options = {"endpoint_url": s3_endpoint, "key": "key", "secret": "secret"}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    bucket = f"bucket-{uuid4().hex}"
    file_system = fsspec.filesystem("s3")
    file_system.mkdir(bucket)
    yield f"s3://{bucket}/segstream"
    type(file_system).clear_instance_cache()
