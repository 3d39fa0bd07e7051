import re
from fractions import Fraction

import pytest

from segstream.clips.figures import FrameFigures
from segstream.clips.records import ClipFacts, ClipOptions, Submission, new_clip_id
from segstream.clips.report import ClipReport, make_report
from segstream.clips.report_page import (
    SHARES_HEIGHT,
    WIDTH,
    consistency_line,
    report_page,
    share_areas,
)
from segstream.engine import ModelInfo
from segstream.label_sets import CAMVID

SKY, CAR = 0, 8


def frame(consistency: float | None = None, **pixels: int) -> FrameFigures:
    num_pixels = [0] * (CAMVID.num_classes + 1)
    num_pixels[SKY], num_pixels[CAR] = pixels.get("sky", 0), pixels.get("car", 0)
    num_pixels[-1] = 100 - sum(num_pixels)
    return FrameFigures(
        num_pixels=num_pixels, stage_seconds={"total": 0.2}, consistency=consistency
    )


def report(figures: list[FrameFigures], name: str = "ride") -> ClipReport:
    submission = Submission(
        id=new_clip_id(),
        options=ClipOptions(model="drive", name=name),
        num_bytes=1,
        digest="d",
        submitted_at=0,
    )
    facts = ClipFacts(width=10, height=10, frames_per_second=Fraction(25, 2), num_frames=None)
    info = ModelInfo("drive", CAMVID, memory_length=2, window_size=3, digest="d")
    return make_report(submission, facts, info, figures, 1)


def test_shares_over_all_and_over_time() -> None:
    made = report([frame(sky=50), frame(sky=50, car=20)])
    assert (made.num_frames, made.timeline_seconds) == (2, [0.0, 0.08])
    sky, car = made.classes[SKY], made.classes[CAR]
    assert (sky.share, sky.shares, sky.colour) == (0.5, [0.5, 0.5], "#808080")
    assert (car.share, car.shares, car.label_id) == (0.1, [0.0, 0.2], 8)
    assert made.latency["total"].p50_seconds == pytest.approx(0.2)


def test_consistency_leaves_out_what_is_not_known() -> None:
    made = report([frame(None), frame(0.5), frame(1.0)])
    assert (made.consistency, made.consistencies) == (0.75, [None, 0.5, 1.0])
    assert report([frame(None)]).consistency is None


def test_a_long_clip_has_a_timeline_of_bounded_length() -> None:
    made = report([frame(sky=index % 100) for index in range(1001)])
    assert len(made.timeline_seconds) == len(made.classes[SKY].shares) == 240
    assert made.timeline_seconds == sorted(set(made.timeline_seconds))


def test_areas_are_stacked_on_each_other() -> None:
    areas = share_areas(report([frame(sky=50, car=25), frame(sky=100)]))
    assert [area.name for area in areas] == ["sky", "car"]
    tops = [re.findall(r"[\d.]+ [\d.]+", area.path)[0] for area in areas]
    assert tops == [f"0.0 {SHARES_HEIGHT / 2:.1f}", f"0.0 {SHARES_HEIGHT / 4:.1f}"]


def test_a_clip_of_one_frame_has_an_area_from_edge_to_edge() -> None:
    [area] = share_areas(report([frame(sky=100)]))
    assert f"{WIDTH:.1f} 0.0" in area.path


def test_the_line_of_consistency_breaks_where_nothing_is_known() -> None:
    assert consistency_line([None, 1.0, 0.5, None, 0.0]).count("M") == 2
    assert consistency_line([None]) == ""


def test_the_page_escapes_what_clients_say_and_loads_nothing() -> None:
    page = report_page(report([frame(1.0, sky=60), frame(None, car=3)], name="<script>alert(1)"))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"https?://", page)
    for told in ("sky", "car", "30.00", "Temporal consistency", "200.0 ms", "100.00 %"):
        assert told in page
    assert "None" not in page
