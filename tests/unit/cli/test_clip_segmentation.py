from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import pytest

from segstream.cli.clip_segmentation import (
    NUM_TILES,
    ROUND_TRIP,
    STAGES,
    ClipJob,
    TileSampler,
    segment_clip,
)
from segstream.client import Client, IdSpace, ImageEncoding
from segstream.errors import (
    EngineError,
    InvalidInputError,
    NotFoundError,
    SegstreamError,
    UnavailableError,
)
from segstream.label_sets import CAMVID
from segstream.media.images import Image
from segstream.media.overlay import Tile
from segstream.media.video import VideoReader
from segstream.v1 import segmentation_pb2 as pb
from tests.unit.cli.conftest import HEIGHT, NUM_FRAMES, WIDTH
from tests.unit.client.fake_service import FakeService, label_map_of, serving_in_thread


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def job(clip: Path, tmp_path: Path) -> ClipJob:
    return ClipJob(
        clip=clip,
        output=tmp_path / "overlay.mp4",
        labels=tmp_path / "labels",
        contact_sheet=tmp_path / "sheet.png",
    )


def frames_of(path: Path) -> list[Image]:
    with VideoReader(path) as reader:
        return list(reader)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_everything_asked_for_is_written(client: Client, job: ClipJob) -> None:
    segment_clip(client, job)
    assert files_below(job.output.parent) == sorted(
        ["clip.mp4", "overlay.mp4", "sheet.png", "labels"]
        + [f"labels/{index:06d}.png" for index in range(NUM_FRAMES)]
    )
    with VideoReader(job.output) as overlay:
        assert (overlay.width, overlay.height) == (WIDTH, HEIGHT)
        assert overlay.frames_per_second == Fraction(6)
        assert len(list(overlay)) == NUM_FRAMES


def test_nothing_else_is_written(client: Client, job: ClipJob) -> None:
    segment_clip(client, replace(job, labels=None, contact_sheet=None))
    assert files_below(job.output.parent) == ["clip.mp4", "overlay.mp4"]


@pytest.mark.parametrize("id_space", IdSpace)
def test_label_maps_belong_to_the_frames_of_the_clip(
    client: Client, job: ClipJob, id_space: IdSpace
) -> None:
    segment_clip(client, replace(job, id_space=id_space))
    assert job.labels is not None
    for index, image in enumerate(frames_of(job.clip)):
        picture = PIL.Image.open(job.labels / f"{index:06d}.png")
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), label_map_of(image))


def test_the_report_tells_what_was_seen_and_how_long_it_took(
    client: Client, job: ClipJob, fake: FakeService
) -> None:
    report = segment_clip(client, job)
    label_maps = np.stack([label_map_of(image) for image in frames_of(job.clip)])
    shares = {label.name: (label_maps == i).mean() for i, label in enumerate(CAMVID.labels)}
    assert {seen.name: seen.share for seen in report.classes} == pytest.approx(
        {name: share for name, share in shares.items() if share}
    )
    assert [seen.share for seen in report.classes] == sorted(
        (seen.share for seen in report.classes), reverse=True
    )
    assert (report.num_frames, report.width, report.height) == (NUM_FRAMES, WIDTH, HEIGHT)
    assert (report.model, report.memory_length) == ("default", 3)
    assert report.session_id == fake.configs[0].session_id
    assert tuple(report.stages) == (*STAGES, ROUND_TRIP)
    assert report.stages["encode"].p99_seconds == 0.25
    assert report.stages["total"].p50_seconds == 0.5
    assert report.stages[ROUND_TRIP].p50_seconds > 0
    assert report.frames_per_second == pytest.approx(NUM_FRAMES / report.elapsed_seconds)


def test_the_job_s_wishes_reach_the_service(
    client: Client, job: ClipJob, fake: FakeService
) -> None:
    wishes = replace(
        job, model="camvid", frame_encoding=ImageEncoding.JPEG, max_height=24, max_frames=5
    )
    assert segment_clip(client, wishes).num_frames == 5
    assert (fake.configs[0].model, fake.configs[0].max_working_height) == ("camvid", 24)
    assert {frame.encoding for frame in fake.frames} == {pb.IMAGE_ENCODING_JPEG}
    assert [frame.timestamp_us for frame in fake.frames[:3]] == [0, 166_667, 333_333]


def test_progress_is_told_frame_by_frame(client: Client, job: ClipJob) -> None:
    calls: list[tuple[int, int | None]] = []
    job = replace(job, max_frames=4)
    segment_clip(client, job, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def failing(fake: FakeService, how: str) -> type[SegstreamError]:
    if how == "frame":
        fake.frame_errors[6] = pb.FrameError(code=3, message="not today")
        return InvalidInputError
    if how == "session":
        fake.fail_at[6] = (grpc.StatusCode.INTERNAL, "the engine is lost")
        return EngineError
    fake.class_names = ("cat", "dog")
    return NotFoundError


@pytest.mark.parametrize("how", ["frame", "session", "classes"])
def test_an_error_leaves_nothing_behind(
    client: Client, job: ClipJob, fake: FakeService, how: str
) -> None:
    error_type = failing(fake, how)
    with pytest.raises(error_type):
        segment_clip(client, job)
    assert files_below(job.output.parent) == ["clip.mp4"]


@pytest.fixture
def earlier(job: ClipJob) -> dict[Path, bytes]:
    """What an earlier run on a longer clip has left, and a file of the user."""
    assert job.labels is not None
    assert job.contact_sheet is not None
    job.labels.mkdir()
    label_maps = [job.labels / f"{index:06d}.png" for index in range(NUM_FRAMES + 3)]
    notes = [job.labels / "notes.txt", job.labels / "2024.png"]
    for path in (*label_maps, *notes, job.output, job.contact_sheet):
        path.write_text(f"earlier {path.name}")
    return contents_below(job.output.parent)


def contents_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_error_leaves_earlier_results_as_they_were(
    client: Client, job: ClipJob, fake: FakeService, earlier: dict[Path, bytes]
) -> None:
    failing(fake, "frame")
    with pytest.raises(InvalidInputError, match="frame 6: not today"):
        segment_clip(client, job)
    assert contents_below(job.output.parent) == earlier


def test_earlier_results_stay_until_the_new_ones_are_whole(
    client: Client, job: ClipJob, earlier: dict[Path, bytes]
) -> None:
    def check(done: int, total: int | None) -> None:
        assert {path: path.read_bytes() for path in earlier} == earlier

    segment_clip(client, job, on_progress=check)


def test_new_label_maps_take_the_place_of_all_earlier_ones(
    client: Client, job: ClipJob, earlier: dict[Path, bytes]
) -> None:
    segment_clip(client, job)
    assert job.labels is not None
    label_maps = [f"{index:06d}.png" for index in range(NUM_FRAMES)]
    assert files_below(job.labels) == [*label_maps, "2024.png", "notes.txt"]
    assert (job.labels / "2024.png").read_text() == "earlier 2024.png"
    for name in label_maps:
        PIL.Image.open(job.labels / name).verify()
    assert files_below(job.output.parent) == sorted(
        ["clip.mp4", "overlay.mp4", "sheet.png", "labels"]
        + [f"labels/{path.name}" for path in job.labels.iterdir()]
    )


def test_a_service_that_vanishes_leaves_nothing_behind(
    job: ClipJob, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segstream.client.call.may_resume", lambda *_: False)
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        pytest.raises(UnavailableError),
    ):
        segment_clip(client, job, on_progress=lambda done, _: served.vanish())
    assert files_below(job.output.parent) == ["clip.mp4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": "none.mp4"}, "is not a file"),
        ({"clip": "text.mp4"}, "text.mp4"),
        ({"output": "."}, "is a folder"),
        ({"output": "nowhere/overlay.mp4"}, "cannot be written: no writable folder"),
        ({"output": "clip.mp4"}, "is the clip itself"),
        ({"labels": "text.mp4"}, "label folder .* is a file"),
        ({"labels": "nowhere/labels"}, "label folder .* cannot be written: no writable folder"),
        ({"contact_sheet": "overlay.mp4"}, "is the output as well"),
        ({"contact_sheet": "nowhere/sheet.png"}, "contact sheet .* cannot be written"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    job: ClipJob, changes: dict[str, str], message: str
) -> None:
    folder = job.output.parent
    (folder / "text.mp4").write_text("this is no video")
    paths = {name: folder / path for name, path in changes.items()}
    with pytest.raises(InvalidInputError, match=message):
        replace(job, **paths).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("num_frames", [1, 2, 8, 9, 10, 35, 36, 37, 100, 1000, 5000])
def test_tiles_are_spread_over_the_clip(num_frames: int) -> None:
    sampler = TileSampler(NUM_TILES)
    for _ in range(num_frames):
        sampler.offer(lambda index: Tile(str(index), np.zeros((1, 1, 3), np.uint8)))
    places = np.array([int(tile.caption) for tile in sampler.tiles()])
    ideal = np.linspace(0, num_frames - 1, min(NUM_TILES, num_frames))
    assert len(places) == len(ideal)
    assert len(set(places)) == len(places)
    assert np.abs(places - ideal).max() <= num_frames / NUM_TILES
