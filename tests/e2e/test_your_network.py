"""The guide docs/your_network.md: its Python and its commands run as they stand there."""

import asyncio
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segstream.cli import app
from segstream.cli.serving import _in_process_engine
from segstream.engine import Step
from segstream.label_sets import CAMVID
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.models import LMANet, LMANetConfig, load
from segstream.models.checkpoint import import_file
from segstream.pages import empty_pages
from segstream.settings import Settings
from tests.unit.training.conftest import camvid as camvid

GUIDE = (Path(__file__).parents[2] / "docs/your_network.md").read_text()
ESPNET, SEGFORMER, FIRST_CHECKPOINT, STREAM = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
]
SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights/espnet_p_2_q_8_camvid.pth"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS} is not here")


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def command(start: str, *more: str | Path) -> str:
    """Run the guide's command that begins so, with further options; what it printed."""
    (line,) = (line for line in COMMANDS if line.startswith(f"segstream {start}"))
    arguments = [*shlex.split(line)[1:], *map(str, more)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("code", [ESPNET, SEGFORMER])
def test_an_adapter_is_short(code: str) -> None:
    lines = [line for line in code.splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 15


@needs_weights
def test_espnet_of_the_guide_is_the_published_one() -> None:
    published = import_file(WEIGHTS)
    assert not published.faults
    mine = LMANet(LMANetConfig(CAMVID, 12, has_memory=False), run(ESPNET)["my_espnet"](12)).eval()
    mine.load_state_dict(published.model.state_dict())
    frame = torch.rand(1, 3, 40, 56)
    with torch.inference_mode():
        found, expected = (net.segment_single(frame) for net in (mine, published.model))
    assert torch.allclose(found, expected, atol=1e-4)


@needs_weights
def test_published_espnet_segments_camvid() -> None:
    """On every tenth frame of val; all of it has 69.1 % (see the docs of the weights)."""
    from segstream.training.camvid import load_camvid
    from segstream.training.evaluation import mean_iou
    from segstream.training.side_by_side import Way

    samples = load_camvid(SHARED / "camvid", "val")[::10]
    assert 66 < mean_iou(load(WEIGHTS), samples, Way.SINGLE_FRAME) < 73


@pytest.fixture
def workplace(camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the guide's module and its data set."""
    pytest.importorskip("transformers")
    folder = tmp_path / "workplace"
    folder.mkdir()
    (folder / "my_network.py").write_text(SEGFORMER)
    (folder / "camvid").symlink_to(camvid)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("my_network", None)


async def served_label_map(settings: Settings, image: Image) -> LabelMap | None:
    """Of a first frame, by the engine that the service has with these settings."""
    engine = _in_process_engine(settings)
    ((name, info),) = engine.models.items()
    assert info.memory_length == 3
    pages = empty_pages(engine.page_geometry(name, *image.shape[:2]), 1)
    result = await engine.step(Step(name, image, pages, (), 0))
    await engine.stop()
    return result.label_map


def test_segformer_trains_streams_and_serves(workplace: Path) -> None:
    run(FIRST_CHECKPOINT)
    command("train", "--epochs", "1", "--crop", "40x48", "--batch-size", "2")
    assert "bias" in command("calibrate")
    assert "mIoU" in command("evaluate --checkpoint calibrated")
    streamed = run(STREAM)
    assert streamed["model"].config.has_memory
    assert streamed["logits"].shape == (1, 12, 90, 120)
    assert streamed["logits"].isfinite().all()

    (serve,) = (shlex.split(line) for line in COMMANDS if line.startswith("segstream serve"))
    settings = Settings(models=[serve[3]], networks=[serve[5]])
    model = streamed["model"]
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    label_map = asyncio.run(served_label_map(settings, image))
    frame = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    expected = model.segment_single(frame)[0, :11].argmax(dim=0).numpy()
    assert label_map is not None
    np.testing.assert_array_equal(label_map, expected)
