"""Images: JPEG, PNG or raw bytes to RGB pixels and back."""

import io
from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from segstream.errors import InvalidInputError, TooLargeError
from segstream.media.decoding import refusing_unreadable

Image = NDArray[np.uint8]
"""RGB pixels, (height, width, 3)."""

_FIELD = "frame.data"
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_SCAN_MARKER = b"\xff\xda"
# A progressive JPEG costs a pass over all pixels per scan; honest ones have about ten.
_MAX_JPEG_SCANS = 200


class ImageEncoding(StrEnum):
    """How the bytes of an image are packed."""

    JPEG = "jpeg"
    PNG = "png"
    RAW_RGB = "raw_rgb"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds that an image's bytes and header must keep before any pixel is decoded."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 4096 * 2304
    max_side: int = 16384

    def check_num_bytes(self, num_bytes: int, field: str) -> None:
        """Raise TooLargeError if an image has more bytes than allowed."""
        if num_bytes > self.max_bytes:
            raise TooLargeError(
                f"{field} has {num_bytes} bytes; at most {self.max_bytes} are allowed",
                field=field,
                limit=self.max_bytes,
            )

    def check_size(self, width: int, height: int, field: str) -> None:
        """Raise TooLargeError if an image has longer sides or more pixels than allowed."""
        if max(width, height) > self.max_side:
            raise TooLargeError(
                f"{field} is {width}x{height}; a side may have at most {self.max_side} pixels",
                field=field,
                limit=self.max_side,
            )
        if width * height > self.max_pixels:
            raise TooLargeError(
                f"{field} is {width}x{height}, {width * height} pixels; "
                f"at most {self.max_pixels} are allowed",
                field=field,
                limit=self.max_pixels,
            )


DEFAULT_IMAGE_LIMITS = ImageLimits()


def decode_image(
    data: bytes,
    encoding: ImageEncoding,
    *,
    width: int = 0,
    height: int = 0,
    limits: ImageLimits = DEFAULT_IMAGE_LIMITS,
) -> Image:
    """Decode to writable RGB; alpha is dropped, 16 bits become 8, EXIF orientation is ignored.

    ``width`` and ``height`` are required for raw RGB; elsewhere 0, or what the header must state.
    Raises InvalidInputError, TooLargeError where a limit is passed.
    """
    if not data:
        raise InvalidInputError(f"{_FIELD} is empty; send an image", field=_FIELD)
    limits.check_num_bytes(len(data), _FIELD)
    if encoding is ImageEncoding.RAW_RGB:
        return _decode_raw(data, width, height, limits)
    if not data.startswith(_JPEG_MAGIC if encoding is ImageEncoding.JPEG else _PNG_MAGIC):
        raise InvalidInputError(
            f"{_FIELD} is not {encoding.upper()}: it starts with {data[:8].hex()}", field=_FIELD
        )
    decode = _decode_jpeg if encoding is ImageEncoding.JPEG else _decode_png
    with refusing_unreadable(_FIELD, encoding.upper()):
        return decode(data, width, height, limits)


def encode_image(image: Image, encoding: ImageEncoding, *, quality: int = 95) -> bytes:
    """Encode RGB (H, W, 3); ``quality`` is for JPEG, from 1 to 100, colours in full from 95."""
    image = np.ascontiguousarray(image)
    match encoding:
        case ImageEncoding.JPEG:
            subsampling = "444" if quality >= 95 else "420"
            jpeg: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", subsampling)
            return jpeg
        case ImageEncoding.PNG:
            _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            return png.tobytes()
        case ImageEncoding.RAW_RGB:
            return image.tobytes()


def detect_image_encoding(data: bytes) -> ImageEncoding:
    """Tell JPEG from PNG by the first bytes; InvalidInputError if they are neither's."""
    if data.startswith(_JPEG_MAGIC):
        return ImageEncoding.JPEG
    if data.startswith(_PNG_MAGIC):
        return ImageEncoding.PNG
    start = f"it starts with {data[:8].hex()}" if data else "it is empty"
    raise InvalidInputError(
        f"{_FIELD} is neither JPEG nor PNG: {start}; raw RGB must be named as such", field=_FIELD
    )


def fit_height(image: Image, max_height: int) -> Image:
    """Shrink in proportion to at most ``max_height`` rows; 0 or enough: the image as it is."""
    height, width = image.shape[:2]
    if max_height <= 0 or height <= max_height:
        return image
    fitted_width = max(1, round(width * max_height / height))
    return _as_pixels(cv2.resize(image, (fitted_width, max_height), interpolation=cv2.INTER_AREA))


def _decode_raw(data: bytes, width: int, height: int, limits: ImageLimits) -> Image:
    for name, value in (("width", width), ("height", height)):
        if value < 1:
            field = f"frame.{name}"
            raise InvalidInputError(
                f"{field} is {value}; raw RGB needs the size in pixels", field=field
            )
    limits.check_size(width, height, _FIELD)
    num_bytes = 3 * width * height
    if len(data) != num_bytes:
        raise InvalidInputError(
            f"{_FIELD} has {len(data)} bytes; raw RGB of {width}x{height} has {num_bytes}",
            field=_FIELD,
        )
    return np.frombuffer(data, np.uint8).reshape(height, width, 3).copy()


def _decode_jpeg(data: bytes, width: int, height: int, limits: ImageLimits) -> Image:
    stated_height, stated_width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    _check_stated_size(stated_width, stated_height, width, height, limits)
    num_scans = data.count(_JPEG_SCAN_MARKER)
    if num_scans > _MAX_JPEG_SCANS:
        raise TooLargeError(
            f"{_FIELD} has {num_scans} JPEG scans; at most {_MAX_JPEG_SCANS} are allowed",
            field=_FIELD,
            limit=_MAX_JPEG_SCANS,
        )
    if colour_space in ("CMYK", "YCCK"):
        return np.array(JpegImageFile(io.BytesIO(data)).convert("RGB"))
    return _as_pixels(simplejpeg.decode_jpeg(data, "RGB"))


def _decode_png(data: bytes, width: int, height: int, limits: ImageLimits) -> Image:
    # The plugin's class rather than PIL.Image.open: no global pixel limit, no other formats.
    header = PngImageFile(io.BytesIO(data))
    _check_stated_size(*header.size, width, height, limits)
    header.verify()
    picture = PngImageFile(io.BytesIO(data))
    picture.load()
    picture.info.pop("transparency", None)
    if picture.mode.startswith("I"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def _check_stated_size(
    stated_width: int, stated_height: int, width: int, height: int, limits: ImageLimits
) -> None:
    limits.check_size(stated_width, stated_height, _FIELD)
    for name, stated, expected in (
        ("width", stated_width, width),
        ("height", stated_height, height),
    ):
        if expected not in (0, stated):
            raise InvalidInputError(
                f"{_FIELD} has {name} {stated}, but frame.{name} is {expected}", field=_FIELD
            )


def _as_pixels(array: NDArray[np.generic]) -> Image:
    return np.asarray(array, np.uint8)
