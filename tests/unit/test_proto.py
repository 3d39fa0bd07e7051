"""The guard of the wire contract: what would break a client in the field is refused."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).parents[2] / "proto"
CONTRACT = "segstream/v1/segmentation.proto"


def breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    """What `make lint` asks: is the contract in this folder still the one of the baseline?"""
    buf = Path(sys.executable).with_name("buf")
    against = ["--against", str(PROTO / "baseline.binpb")]
    return subprocess.run(
        [buf, "breaking", *against], cwd=folder, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy of the contract, to be changed."""
    return Path(shutil.copytree(PROTO, tmp_path / "proto"))


def change(folder: Path, pattern: str, replacement: str) -> None:
    path = folder / CONTRACT
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert count == 1, pattern
    path.write_text(text)


def test_the_contract_breaks_no_client_of_the_baseline() -> None:
    result = breaking(PROTO)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("pattern", "replacement", "told"),
    [
        (r"string session_id = 1;", "string session_id = 19;", 'field "1"'),
        (r"uint32 max_working_height = 5;", "string max_working_height = 5;", "type"),
        (r"  rpc GetSession\([^;]*;", "", '"GetSession"'),
        (r"IMAGE_ENCODING_PNG = 2;", "IMAGE_ENCODING_GIF = 2;", "IMAGE_ENCODING_PNG"),
    ],
    ids=["number", "type", "method", "enumeration"],
)
def test_a_breaking_change_is_refused(
    changed: Path, pattern: str, replacement: str, told: str
) -> None:
    change(changed, pattern, replacement)
    result = breaking(changed)
    assert result.returncode != 0
    assert told in result.stdout + result.stderr


def test_an_addition_is_not_refused(changed: Path) -> None:
    change(changed, r"message EndOfFrames \{\}", "message EndOfFrames { string why = 1; }")
    assert breaking(changed).returncode == 0
