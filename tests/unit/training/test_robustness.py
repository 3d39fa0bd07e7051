import numpy as np
import pytest

from segstream.errors import InvalidInputError
from segstream.training.robustness import DEGRADATIONS, Degradation, rows_named

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
ROWS = {row.name: row for row in DEGRADATIONS}


def test_seven_ways_at_three_strengths_each() -> None:
    assert len(ROWS) == len(DEGRADATIONS) == 21
    assert {"noise10", "motion_blur", "alternate_corrupt", "alternate_blank"} <= ROWS.keys()


def test_a_row_spoils_a_frame_in_the_same_way_each_time() -> None:
    for row in DEGRADATIONS:
        first, second = row(IMAGE, 3), row(IMAGE, 3)
        if first is None or second is None:
            assert first is second, row.name
        else:
            assert np.array_equal(first, second), row.name


def test_frames_differ_in_what_spoils_them() -> None:
    row = ROWS["noise10"]
    first, second = (np.asarray(row(IMAGE, index), int) for index in (1, 2))
    assert np.abs(first - second).mean() > 5


def test_alternate_rows_leave_the_others_as_they_are() -> None:
    def is_kept(row: Degradation) -> list[bool]:
        frames = [row(IMAGE, index) for index in range(8)]
        return [frame is not None and np.array_equal(frame, IMAGE) for frame in frames]

    assert is_kept(ROWS["alternate_corrupt"]) == [True, False] * 4
    assert is_kept(ROWS["alternate_blank_3of4"]) == [True, False, False, False] * 2
    assert is_kept(ROWS["alternate_dropped"]) == [True, False] * 4
    assert ROWS["alternate_dropped"](IMAGE, 1) is None


def test_noise_has_the_deviation_it_says() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for name, sigma in (("noise10", 10), ("noise25", 25)):
        spoilt = ROWS[name](grey, 0)
        assert spoilt is not None
        assert abs(spoilt.astype(float).std() - sigma) < 0.5


def test_rows_are_found_by_their_names() -> None:
    rows = rows_named(["alternate_blank", "noise10"])
    assert [row.name for row in rows] == ["noise10", "alternate_blank"]
    assert rows_named(()) == ()
    with pytest.raises(InvalidInputError, match="row is 'fog', must be one of"):
        rows_named(["fog"])
