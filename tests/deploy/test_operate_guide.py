"""docs/operate.md: its commands are those that the drills of the containers run."""

import re
from itertools import chain
from pathlib import Path

import pytest

from benchmarks import compose

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/operate.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
]
RUN = [*compose.START, *chain(*compose.DRILLS.values()), *compose.LOOK, *compose.STOP]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_is_run_by_the_drills(command: str) -> None:
    assert command in RUN


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_the_drills_is_in_the_guide(command: str) -> None:
    assert command in COMMANDS


@pytest.mark.parametrize("name", ["operate", "kubernetes", "upgrading"])
def test_what_a_guide_points_to_is_there(name: str) -> None:
    guide = (ROOT / f"docs/{name}.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", guide):
        assert (ROOT / "docs" / target).exists(), target
