import numpy as np
import pytest

from segstream.label_sets import CAMVID, CITYSCAPES, IGNORE_INDEX
from segstream.media.images import Image
from segstream.media.overlay import Tile, colour_label_map, contact_sheet, draw_overlay

ROAD, CAR = 3, 8


def grey(width: int = 40, height: int = 30, value: int = 100) -> Image:
    return np.full((height, width, 3), value, np.uint8)


def shows(page: Image, colour: tuple[int, int, int]) -> bool:
    return bool((page == colour).all(axis=2).any())


def camvid_shares(**shares: float) -> list[float]:
    return [shares.get(label.name, 0.0) for label in CAMVID.labels]


def test_classes_take_their_colours() -> None:
    label_map = np.array([[*range(CITYSCAPES.num_classes), IGNORE_INDEX]], np.uint8)
    expected = [*(label.colour for label in CITYSCAPES.labels), (0, 0, 0)]
    np.testing.assert_array_equal(colour_label_map(label_map, CITYSCAPES)[0], expected)


def test_an_overlay_mixes_image_and_class_colour() -> None:
    label_map = np.full((30, 40), ROAD, np.uint8)
    overlay = draw_overlay(grey(), label_map, CAMVID, opacity=0.25)
    expected = 0.25 * np.array(CAMVID.labels[ROAD].colour) + 0.75 * 100
    assert np.abs(overlay - expected).max() <= 1


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, (100,) * 3), (1.0, (128, 64, 128))])
def test_opacity_reaches_from_the_image_to_the_colours(
    opacity: float, expected: tuple[int, int, int]
) -> None:
    label_map = np.full((30, 40), ROAD, np.uint8)
    assert (draw_overlay(grey(), label_map, CAMVID, opacity=opacity) == expected).all()


def test_pixels_without_a_class_stay_the_image() -> None:
    label_map = np.full((30, 40), ROAD, np.uint8)
    label_map[:, 20:] = IGNORE_INDEX
    overlay = draw_overlay(grey(), label_map, CAMVID)
    assert (overlay[:, 20:] == 100).all()
    assert (overlay[:, :19] != 100).any(axis=2).all()


def test_borders_between_classes_are_lighter() -> None:
    label_map = np.full((30, 40), ROAD, np.uint8)
    label_map[:, 20:] = CAR
    overlay = draw_overlay(grey(), label_map, CAMVID).sum(axis=2)
    border = overlay[10, 18:22].max()
    assert border > overlay[10, 5]
    assert border > overlay[10, 35]


def test_an_overlay_leaves_its_inputs_alone() -> None:
    image, label_map = grey(), np.full((30, 40), ROAD, np.uint8)
    draw_overlay(image, label_map, CAMVID)
    assert (image == 100).all()
    assert (label_map == ROAD).all()


def test_the_legend_shows_the_classes_seen_and_no_other() -> None:
    page = contact_sheet([], CAMVID, camvid_shares(road=0.7, car=0.3), title="clip")
    for label in CAMVID.labels:
        assert shows(page, label.colour) == (label.name in ("road", "car"))


def test_the_share_bar_is_sorted_and_to_scale() -> None:
    page = contact_sheet([], CAMVID, camvid_shares(car=0.25, road=0.75), title="clip")
    is_road = (page == CAMVID.labels[ROAD].colour).all(axis=2)
    is_car = (page == CAMVID.labels[CAR].colour).all(axis=2)
    bar = int(is_road.sum(axis=1).argmax())
    assert is_road[bar].nonzero()[0].max() < is_car[bar].nonzero()[0].min()
    assert is_road[bar].sum() == pytest.approx(3 * is_car[bar].sum(), rel=0.01)


def test_tiles_fill_a_grid() -> None:
    tiles = [Tile(f"frame {value}", grey(value=value)) for value in range(60, 70)]
    page = contact_sheet(tiles, CAMVID, camvid_shares(road=1), title="clip", columns=4)
    corners = []
    for value in range(60, 70):
        rows, columns = (page == (value,) * 3).all(axis=2).nonzero()
        assert len(rows) >= 420 * 315 * 0.99
        corners.append((int(rows.min()), int(columns.min())))
    assert corners == sorted(corners)
    assert len({top for top, _ in corners}) == 3
    assert len({left for _, left in corners}) == 4


def test_more_columns_make_a_wider_page_and_more_rows_a_higher_one() -> None:
    tiles = [Tile("frame", grey())] * 4
    shares = camvid_shares(road=1)
    narrow = contact_sheet(tiles, CAMVID, shares, title="clip", columns=2)
    wide = contact_sheet(tiles, CAMVID, shares, title="clip", columns=4)
    assert wide.shape[1] > narrow.shape[1]
    assert wide.shape[0] < narrow.shape[0]


def test_tiles_of_different_shapes_keep_their_proportions() -> None:
    tiles = [Tile("wide", grey(90, 10, 61)), Tile("high", grey(10, 20, 62))]
    page = contact_sheet(tiles, CAMVID, camvid_shares(), title="clip", columns=2)
    _, wide_columns = (page == (61,) * 3).all(axis=2).nonzero()
    high_rows, _ = (page == (62,) * 3).all(axis=2).nonzero()
    assert np.ptp(wide_columns) == 419
    assert np.ptp(high_rows) == 839


def test_long_titles_and_captions_stay_on_the_page() -> None:
    page = contact_sheet(
        [Tile("caption " * 99, grey())], CAMVID, camvid_shares(), title="title " * 99, columns=1
    )
    background = page[0, 0]
    assert (page[:, -20:] == background).all()


def test_a_page_can_be_empty() -> None:
    page = contact_sheet([], CAMVID, camvid_shares(), title="")
    assert page.ndim == 3
    assert page.dtype == np.uint8


def test_shares_must_match_the_label_set() -> None:
    with pytest.raises(ValueError, match="shorter"):
        contact_sheet([], CAMVID, [0.5, 0.5], title="clip")
