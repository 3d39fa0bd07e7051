"""``segstream segment`` as a user runs it: a child process, a real service, real files."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segstream.label_sets import CITYSCAPES
from segstream.media.images import Image, ImageEncoding, decode_image, encode_image
from segstream.media.label_maps import LabelMap
from segstream.media.overlay import draw_overlay
from segstream.media.video import VideoReader
from segstream.models import LMANet
from tests.e2e.conftest import FRAMES_PER_SECOND, HEIGHT, NUM_FRAMES, WIDTH
from tests.support.models import MEMORY_LENGTH, STREET, segment_alone
from tests.support.process import Finished, ServeProcess, run_segstream

STAGES = {
    "queue",
    "image_decode",
    "encode",
    "memory_read",
    "fuse_decode",
    "label_map_encode",
    "total",
    "round_trip",
}


def label_maps_in(folder: Path) -> list[LabelMap]:
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"{index:06d}.png" for index in range(len(paths))]
    pictures = [PIL.Image.open(path) for path in paths]
    assert {picture.mode for picture in pictures} == {"P"}
    return [np.array(picture) for picture in pictures]


def frames_of(path: Path, frames_per_second: Fraction = FRAMES_PER_SECOND) -> list[Image]:
    with VideoReader(path) as video:
        assert video.frames_per_second == frames_per_second
        return list(video)


def report_of(finished: Finished) -> dict[str, Any]:
    assert finished.exit_code == 0, finished.err
    report: dict[str, Any] = json.loads(finished.out)
    return report


def test_without_a_server_one_is_started_for_the_clip(
    clip: Path, clip_images: list[Image], checkpoint: Path, model: LMANet, tmp_path: Path
) -> None:
    output, labels, sheet = (tmp_path / name for name in ("out.mp4", "labels", "sheet.png"))
    finished = run_segstream(
        *("segment", clip, "-o", output, "--labels", labels, "--contact-sheet", sheet),
        SEGSTREAM_MODELS=str(checkpoint),
    )
    assert finished.exit_code == 0, finished.err
    for text in ("out.mp4", "labels", "sheet.png", STREET, "p95", "classes seen", *STAGES):
        assert text in finished.out
    expected = segment_alone(model, clip_images)
    np.testing.assert_array_equal(label_maps_in(labels), expected)
    overlays = frames_of(output)
    assert [frame.shape for frame in overlays] == NUM_FRAMES * [(HEIGHT, WIDTH, 3)]
    for frame, image, label_map in zip(overlays, clip_images, expected, strict=True):
        wanted = draw_overlay(image, label_map, CITYSCAPES).astype(np.int16)
        # H.264 blurs colours, yet not so far as the frame without its classes.
        assert np.abs(frame - wanted).mean() < np.abs(frame - image.astype(np.int16)).mean() / 2
    with PIL.Image.open(sheet) as page:
        assert page.width > 3 * WIDTH
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "out.mp4", "sheet.png"]


def test_a_running_server_is_used_and_the_figures_are_one_json_object(
    clip: Path, clip_images: list[Image], server: ServeProcess, model: LMANet, tmp_path: Path
) -> None:
    output, labels = tmp_path / "out.mp4", tmp_path / "labels"
    report = report_of(
        run_segstream(
            *("segment", clip, "-o", output, "--labels", labels, "--json"),
            *("--server", server.grpc_address, "--frame-encoding", "raw_rgb"),
        )
    )
    expected = np.array(segment_alone(model, clip_images))
    np.testing.assert_array_equal(label_maps_in(labels), expected)
    assert len(frames_of(output)) == NUM_FRAMES
    assert (report["clip"], report["output"], report["labels"]) == (
        str(clip),
        str(output),
        str(labels),
    )
    assert (report["width"], report["height"], report["num_frames"]) == (WIDTH, HEIGHT, NUM_FRAMES)
    assert (report["model"], report["memory_length"]) == (STREET, MEMORY_LENGTH)
    assert report["frames_per_second"] > 0
    assert set(report["stages"]) == STAGES
    for times in report["stages"].values():
        assert 0 <= times["p50_seconds"] <= times["p95_seconds"] <= times["p99_seconds"]
    shares = {seen["name"]: seen["share"] for seen in report["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    for train_id, label in enumerate(CITYSCAPES.labels):
        assert shares.get(label.name, 0) == pytest.approx(np.mean(expected == train_id))


def test_to_a_server_frames_travel_as_jpeg_by_default(
    clip: Path, clip_images: list[Image], server: ServeProcess, model: LMANet, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    finished = run_segstream(
        *("segment", clip, "-o", tmp_path / "out.mp4", "--labels", labels, "--max-frames", "3"),
        *("--server", server.grpc_address, "--id-space", "label_id", "--json"),
    )
    assert report_of(finished)["num_frames"] == 3
    travelled = [
        decode_image(encode_image(image, ImageEncoding.JPEG), ImageEncoding.JPEG)
        for image in clip_images[:3]
    ]
    label_ids = np.array([label.label_id for label in CITYSCAPES.labels], np.uint8)
    expected = label_ids[np.array(segment_alone(model, travelled))]
    np.testing.assert_array_equal(label_maps_in(labels), expected)
    assert len(frames_of(tmp_path / "out.mp4")) == 3


@pytest.mark.parametrize(
    ("make_clip", "told"),
    [
        (lambda path: None, "is not a file"),
        (lambda path: path.write_text("Not a video.\n" * 100), "is not a video"),
    ],
    ids=["missing", "text"],
)
def test_a_clip_that_cannot_be_read(make_clip: Any, told: str, tmp_path: Path) -> None:
    make_clip(clip := tmp_path / "bad.mp4")
    before = sorted(tmp_path.iterdir())
    finished = run_segstream(
        *("segment", clip, "-o", tmp_path / "out.mp4", "--labels", tmp_path / "labels")
    )
    assert finished.exit_code == 1
    assert "bad.mp4" in finished.error_line
    assert told in finished.error_line
    assert finished.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_a_clip_that_breaks_off_leaves_nothing_behind(
    clip: Path, server: ServeProcess, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    finished = run_segstream(
        *("segment", broken, "-o", tmp_path / "out.mp4", "--labels", tmp_path / "labels"),
        *("--server", server.grpc_address),
    )
    assert "broken.mp4" in finished.error_line
    assert list(tmp_path.iterdir()) == [broken]


def test_a_model_that_the_server_does_not_have(
    clip: Path, server: ServeProcess, tmp_path: Path
) -> None:
    finished = run_segstream(
        *("segment", clip, "-o", tmp_path / "out.mp4", "--labels", tmp_path / "labels"),
        *("--server", server.grpc_address, "--model", "segformer"),
    )
    assert finished.exit_code == 1
    assert "'segformer'" in finished.error_line
    assert STREET in finished.error_line
    assert not list(tmp_path.iterdir())


def test_nobody_at_the_server_address(clip: Path, tmp_path: Path) -> None:
    finished = run_segstream(
        *("segment", clip, "-o", tmp_path / "out.mp4", "--server", "127.0.0.1:1")
    )
    assert finished.error_line == "no segstream service at 127.0.0.1:1"
    assert not list(tmp_path.iterdir())


def test_a_service_that_cannot_start_says_why(clip: Path, tmp_path: Path) -> None:
    finished = run_segstream(
        *("segment", clip, "-o", tmp_path / "out.mp4"), SEGSTREAM_MODELS='["nowhere.safetensors"]'
    )
    assert finished.exit_code == 1
    assert "Traceback" not in finished.err
    assert "nowhere.safetensors" in finished.err
    assert not list(tmp_path.iterdir())
