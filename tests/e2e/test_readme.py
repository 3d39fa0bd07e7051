"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

from tests.support.process import ServeProcess

README = Path(__file__).parents[2] / "README.md"
CLIENT, RESEARCH = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_client_s_example(server: ServeProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert "127.0.0.1:50051" in CLIENT
    exec(CLIENT.replace("127.0.0.1:50051", server.grpc_address), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0 (360, 480) 0"
    assert [line.split()[0] for line in lines] == [str(index) for index in range(10)]


def test_the_example_for_research() -> None:
    names: dict[str, object] = {}
    exec(RESEARCH, names)
    assert getattr(names["logits"], "shape", None) == (1, 12, 360, 480)
