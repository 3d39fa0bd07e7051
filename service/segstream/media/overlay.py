"""Pictures for people: label maps in colour, overlays on frames, contact sheets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import PIL.Image
from PIL.ImageDraw import ImageDraw
from PIL.ImageFont import FreeTypeFont, load_default

from segstream.label_sets import IGNORE_INDEX, Label, LabelSet
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap, colour_table

_BORDER_LIGHT = 0.35

_PAGE = (250, 250, 251)
_INK = (24, 27, 33)
_FAINT_INK = (107, 114, 128)
_RULE = (222, 225, 230)
_MARGIN = 40
_GAP = 20
_TILE_WIDTH = 420
_CAPTION_HEIGHT = 34
_TITLE_HEIGHT = 66
_BAR_HEIGHT = 16
_LEGEND_COLUMN_WIDTH = 210
_LEGEND_ROW_HEIGHT = 32
_SWATCH = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a contact sheet, RGB of any size, and the line below it."""

    caption: str
    image: Image


def colour_label_map(label_map: LabelMap, label_set: LabelSet) -> Image:
    """(H, W) train ids to RGB in the colours of the label set; black where there is no class."""
    colours = colour_table(label_set)
    return np.asarray(cv2.LUT(cv2.merge([label_map] * 3), colours[None]), np.uint8)


def draw_overlay(
    image: Image, label_map: LabelMap, label_set: LabelSet, *, opacity: float = 0.55
) -> Image:
    """Tint RGB (H, W, 3) by class and lighten class borders; no class leaves pixels as they are."""
    colours = colour_label_map(label_map, label_set)
    overlay = cv2.addWeighted(colours, opacity, image, 1 - opacity, 0)
    borders = _borders(label_map)
    lightened = cv2.convertScaleAbs(overlay, alpha=1 - _BORDER_LIGHT, beta=255 * _BORDER_LIGHT)
    cv2.copyTo(lightened, borders, overlay)
    cv2.copyTo(image, np.equal(label_map, IGNORE_INDEX).view(np.uint8), overlay)
    return np.asarray(overlay, np.uint8)


def contact_sheet(
    tiles: Sequence[Tile],
    label_set: LabelSet,
    class_shares: Sequence[float],
    *,
    title: str,
    columns: int = 3,
) -> Image:
    """A page of captioned tiles above a legend of the classes seen, RGB.

    ``class_shares`` are parts of 1 in train-id order, one for each class of the label set.
    """
    shares = _sorted_shares(label_set, class_shares)
    rows = _tile_rows(tiles, columns)
    page_width = 2 * _MARGIN + columns * _TILE_WIDTH + (columns - 1) * _GAP
    page = PIL.Image.new("RGB", (page_width, _page_height(rows, shares, page_width)), _PAGE)
    draw = ImageDraw(page)
    content_width = page_width - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN), _shortened(title, 28, content_width), _INK, _font(28))
    top = _MARGIN + _TITLE_HEIGHT
    for row in rows:
        top = _draw_tile_row(page, draw, row, top)
    _draw_legend(draw, shares, top, page_width)
    return np.array(page)


def _borders(label_map: LabelMap) -> LabelMap:
    """Non-zero on the pixels that touch another class."""
    kernel = np.ones((2, 2), np.uint8)
    return np.asarray(cv2.morphologyEx(label_map, cv2.MORPH_GRADIENT, kernel), np.uint8)


def _sorted_shares(label_set: LabelSet, class_shares: Sequence[float]) -> list[tuple[Label, float]]:
    shares = zip(label_set.labels, class_shares, strict=True)
    return sorted((share for share in shares if share[1] > 0), key=lambda share: -share[1])


def _tile_rows(tiles: Sequence[Tile], columns: int) -> list[list[Tile]]:
    fitted = [Tile(tile.caption, _fitted_to_tile(tile.image)) for tile in tiles]
    return [fitted[start : start + columns] for start in range(0, len(fitted), columns)]


def _fitted_to_tile(image: Image) -> Image:
    height, width = image.shape[:2]
    interpolation = cv2.INTER_AREA if width > _TILE_WIDTH else cv2.INTER_CUBIC
    size = (_TILE_WIDTH, max(1, round(height * _TILE_WIDTH / width)))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def _row_height(row: Sequence[Tile]) -> int:
    return max(len(tile.image) for tile in row) + _CAPTION_HEIGHT + _GAP


def _legend_columns(page_width: int) -> int:
    return max(1, (page_width - 2 * _MARGIN) // _LEGEND_COLUMN_WIDTH)


def _page_height(
    rows: Sequence[Sequence[Tile]], shares: Sequence[tuple[Label, float]], page_width: int
) -> int:
    legend_rows = -(-len(shares) // _legend_columns(page_width))
    legend_height = _BAR_HEIGHT + _GAP + legend_rows * _LEGEND_ROW_HEIGHT if shares else 0
    return 2 * _MARGIN + _TITLE_HEIGHT + sum(_row_height(row) for row in rows) + legend_height


def _draw_tile_row(page: PIL.Image.Image, draw: ImageDraw, row: Sequence[Tile], top: int) -> int:
    """Draw one row of tiles and return where the next begins."""
    for column, tile in enumerate(row):
        left = _MARGIN + column * (_TILE_WIDTH + _GAP)
        height = len(tile.image)
        page.paste(PIL.Image.fromarray(tile.image), (left, top))
        draw.rectangle((left - 1, top - 1, left + _TILE_WIDTH, top + height), outline=_RULE)
        caption = _shortened(tile.caption, 15, _TILE_WIDTH)
        draw.text((left, top + height + 8), caption, _FAINT_INK, _font(15))
    return top + _row_height(row)


def _draw_legend(
    draw: ImageDraw, shares: Sequence[tuple[Label, float]], top: int, page_width: int
) -> None:
    if not shares:
        return
    _draw_share_bar(draw, shares, top, page_width)
    columns = _legend_columns(page_width)
    column_width = (page_width - 2 * _MARGIN) // columns
    for place, (label, share) in enumerate(shares):
        left = _MARGIN + place % columns * column_width
        middle = top + _BAR_HEIGHT + _GAP + place // columns * _LEGEND_ROW_HEIGHT + _SWATCH // 2
        swatch = (left, middle - _SWATCH // 2, left + _SWATCH, middle + _SWATCH // 2)
        draw.rectangle(swatch, fill=label.colour)
        name_left = left + _SWATCH + 10
        draw.text((name_left, middle), label.name, _INK, _font(15), anchor="lm")
        share_left = name_left + _font(15).getlength(label.name) + 8
        draw.text((share_left, middle), percent(share), _FAINT_INK, _font(15), anchor="lm")


def _draw_share_bar(
    draw: ImageDraw, shares: Sequence[tuple[Label, float]], top: int, page_width: int
) -> None:
    scale = (page_width - 2 * _MARGIN) / max(1.0, sum(share for _, share in shares))
    left = float(_MARGIN)
    draw.rectangle((_MARGIN, top, page_width - _MARGIN - 1, top + _BAR_HEIGHT - 1), fill=_RULE)
    for label, share in shares:
        right = left + share * scale
        if round(right) > round(left):
            draw.rectangle(
                (round(left), top, round(right) - 1, top + _BAR_HEIGHT - 1), fill=label.colour
            )
        left = right


def percent(share: float) -> str:
    """A part of 1 for people to read; what is there is never 0."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _shortened(text: str, size: int, width: int) -> str:
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@lru_cache
def _font(size: int) -> FreeTypeFont:
    font = load_default(size)
    assert isinstance(font, FreeTypeFont)
    return font
