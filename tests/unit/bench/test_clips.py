import argparse
from pathlib import Path

import pytest

from segstream.bench.clips import add_clip


@pytest.fixture
def parser(tmp_path: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_clip(parser, tmp_path)
    return parser


def test_the_clip_is_the_one_named(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    clip = tmp_path / "ride.mp4"
    clip.touch()
    assert parser.parse_args(["--clip", str(clip)]).clip == clip


def test_without_a_name_it_is_that_of_the_demo(
    parser: argparse.ArgumentParser, tmp_path: Path
) -> None:
    clip = tmp_path / "demo/bikes.mp4"
    clip.parent.mkdir()
    clip.touch()
    assert parser.parse_args([]).clip == clip


@pytest.mark.parametrize("arguments", [[], ["--clip", "nowhere.mp4"]])
def test_a_clip_that_is_not_there_ends_the_program(
    parser: argparse.ArgumentParser, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert "run 'make demo' once" in capsys.readouterr().err
