"""A worker on a network of one's own: found by its entry, values in blocks."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from segstream.models import save
from segstream.triton.contract import Description
from segstream.triton.repository import write_repository
from segstream.triton.worker import Answer, Floats, Question, Worker
from tests.support.models import make_video, segment_alone
from tests.support.networks import ENTRY, PATCHES, make_patches_lmanet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the model's version in a repository."""
    checkpoint = tmp_path / f"{PATCHES}.safetensors"
    save(make_patches_lmanet(), checkpoint)
    write_repository(tmp_path / "repository", [str(checkpoint)], networks=[ENTRY])
    return tmp_path / "repository" / PATCHES / "1"


def test_pages_that_travel_are_those_of_a_stream(folder: Path) -> None:
    worker, video = Worker(PATCHES, folder, "cpu"), make_video(3)
    description = Description.decode(worker.describe().encode())
    assert description.page_geometry(48, 64) == make_patches_lmanet().page_geometry(48, 64)
    keys: list[Floats] = []
    values: list[Floats] = []
    found = []
    for image in video:
        question = Question(
            image,
            description.digest,
            wants_label_map=True,
            keys=np.stack(keys[-2:]) if keys else None,
            values=np.stack(values[-2:]) if values else None,
            wants_page=True,
        )
        [answer] = worker.answer([question])
        assert isinstance(answer, Answer)
        assert answer.key is not None
        assert answer.value is not None
        assert answer.value.shape == (6, 8, 128)
        keys.append(answer.key)
        values.append(answer.value)
        found.append(answer.result.label_map)
    np.testing.assert_array_equal(found, segment_alone(make_patches_lmanet(), video))


def test_settings_that_it_does_not_know_are_refused(folder: Path) -> None:
    (folder / "model.json").write_text('{"checkpoint": "x", "network": []}')
    with pytest.raises(ValidationError, match="network"):
        Worker(PATCHES, folder, "cpu")
