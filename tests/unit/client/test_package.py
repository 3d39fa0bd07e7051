import subprocess
import sys
from dataclasses import fields

from segstream.client import StreamKeywords, StreamOptions


def test_importing_the_client_does_not_import_torch() -> None:
    check = "import segstream.client, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_the_keywords_of_stream_are_its_options() -> None:
    assert set(StreamKeywords.__annotations__) == {field.name for field in fields(StreamOptions)}
