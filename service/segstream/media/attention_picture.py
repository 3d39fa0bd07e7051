"""A picture of where a pixel looked: heat on the past frames, the pixel marked on its own."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segstream.label_sets import LabelSet
from segstream.media.images import Image
from segstream.media.overlay import Tile, contact_sheet

_TILE_SIDE = 840  # pixels of an enlarged crop, before it is fitted to its tile
_MIN_CROP = 96
_CROP_PER_WINDOW = 1.6
_MARK = (255, 255, 255)
_SHADOW = (0, 0, 0)
_GREY_SHARE = 0.65
_MAX_HEAT = 0.85


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What there is to draw; ``frames`` are RGB ``(H, W, 3)``, the last one is the pixel's own.

    weights: ``(T, h, w)`` on the frames before it, in cells of ``stride`` pixels. window: the side
    of what the pixel can see, in pixels.
    """

    frames: list[Image]
    weights: npt.NDArray[np.float32]
    x: int
    y: int
    stride: int
    window: int


def draw_look(
    look: Look, captions: list[str], label_set: LabelSet, shares: list[float], *, title: str
) -> Image:
    """A page of all frames, whole and enlarged around the pixel, above the classes looked at, RGB.

    ``captions`` are those of the whole frames; ``shares`` are parts of 1 in train-id order.
    """
    strongest = float(look.weights.max()) or 1.0
    past = [
        _heated(frame, weights / strongest, look.stride)
        for frame, weights in zip(look.frames, look.weights, strict=False)
    ]
    pictures = [*past, look.frames[-1]]
    whole = [
        Tile(caption, _with_window(picture, look))
        for caption, picture in zip(captions, pictures, strict=True)
    ]
    enlarged = [Tile("", _enlarged(picture, look)) for picture in pictures]
    return contact_sheet([*whole, *enlarged], label_set, shares, title=title, columns=len(pictures))


def _heated(frame: Image, weights: npt.NDArray[np.float32], stride: int) -> Image:
    """The frame in grey, and on it the weights, 1 the strongest; cells stay square."""
    height, width, _ = frame.shape
    heat = np.sqrt(np.kron(weights, np.ones((stride, stride), np.float32))[:height, :width])
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    faded = cv2.addWeighted(grey, _GREY_SHARE, frame, 1 - _GREY_SHARE, 0)
    colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = (_MAX_HEAT * np.minimum(1, 2 * heat))[..., None]
    return np.asarray(faded * (1 - alpha) + colours * alpha, np.uint8)


def _with_window(picture: Image, look: Look) -> Image:
    """The borders of what the pixel can see, and the pixel."""
    return _marked(picture, look, (0, 0), 1.0, thickness=max(1, round(picture.shape[0] / 360)))


def _enlarged(picture: Image, look: Look) -> Image:
    height, width, _ = picture.shape
    side = min(max(round(_CROP_PER_WINDOW * look.window), _MIN_CROP), height, width)
    left = min(max(0, look.x - side // 2), width - side)
    top = min(max(0, look.y - side // 2), height - side)
    crop = picture[top : top + side, left : left + side]
    size = (_TILE_SIDE, _TILE_SIDE)
    large = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    return _marked(large, look, (left, top), _TILE_SIDE / side, thickness=3)


def _marked(
    picture: Image, look: Look, origin: tuple[int, int], scale: float, *, thickness: int
) -> Image:
    """A copy with the window and the pixel; ``origin`` and ``scale`` tell what it shows."""
    drawn = picture.copy()
    corners, at = [], []
    for place, first in zip((look.x, look.y), origin, strict=True):
        middle = place // look.stride * look.stride + look.stride // 2
        start = (middle - look.window // 2 - first) * scale
        corners.append((round(start), round(start + look.window * scale) - 1))
        at.append(round((place - first + 0.5) * scale))
    (left, right), (top, bottom) = corners
    length = max(4 * thickness, round(scale * look.stride / 2))
    for colour, width in ((_SHADOW, 3 * thickness), (_MARK, thickness)):
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, width, cv2.LINE_AA)
        cv2.drawMarker(drawn, at, colour, cv2.MARKER_CROSS, length, width, cv2.LINE_AA)
    return drawn
