import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segstream.errors import InvalidInputError, SegstreamError, TooLargeError
from segstream.media.images import (
    Image,
    ImageEncoding,
    ImageLimits,
    decode_image,
    detect_image_encoding,
    encode_image,
    fit_height,
)

LOSSLESS = (ImageEncoding.PNG, ImageEncoding.RAW_RGB)
COMPRESSED = (ImageEncoding.JPEG, ImageEncoding.PNG)


def gradient(width: int = 48, height: int = 32) -> Image:
    rows, columns = np.mgrid[0:height, 0:width]
    planes = (rows * 255 // height, columns * 255 // width, (rows + columns) % 256)
    return np.stack(planes, axis=2).astype(np.uint8)


def saved(picture: PIL.Image.Image, form: str, **options: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, form, **options)
    return target.getvalue()


def mean_difference(one: Image, other: Image) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def png_stating_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + encode_image(gradient(), ImageEncoding.PNG)[33:]


def jpeg_stating_size(width: int, height: int) -> bytes:
    data = encode_image(gradient(), ImageEncoding.JPEG)
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


@st.composite
def images(draw: st.DrawFn) -> Image:
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(images(), st.sampled_from(LOSSLESS))
def test_png_and_raw_keep_every_pixel(image: Image, encoding: ImageEncoding) -> None:
    height, width = image.shape[:2]
    data = encode_image(image, encoding)
    np.testing.assert_array_equal(decode_image(data, encoding, width=width, height=height), image)


@pytest.mark.parametrize(("quality", "tolerance"), [(100, 1.0), (95, 3.0), (80, 8.0)])
def test_jpeg_keeps_pixels_closely(quality: int, tolerance: float) -> None:
    data = encode_image(gradient(), ImageEncoding.JPEG, quality=quality)
    assert mean_difference(decode_image(data, ImageEncoding.JPEG), gradient()) < tolerance


@pytest.mark.parametrize("encoding", ImageEncoding)
def test_decoded_pixels_are_contiguous_and_writable(encoding: ImageEncoding) -> None:
    image = decode_image(encode_image(gradient(), encoding), encoding, width=48, height=32)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert image.dtype == np.uint8


@pytest.mark.parametrize("encoding", ImageEncoding)
def test_views_of_larger_images_can_be_encoded(encoding: ImageEncoding) -> None:
    view = gradient()[3:19:2, 5:37, ::-1]
    image = decode_image(encode_image(view, encoding), encoding, width=32, height=8)
    assert mean_difference(image, view) < 8


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grey_becomes_rgb(form: str) -> None:
    picture = PIL.Image.fromarray(gradient()).convert("L")
    image = decode_image(saved(picture, form), ImageEncoding(form.lower()))
    assert mean_difference(image, np.array(picture.convert("RGB"))) < 2


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = saved(PIL.Image.fromarray(gradient()).convert("CMYK"), "JPEG", quality=95)
    assert mean_difference(decode_image(data, ImageEncoding.JPEG), gradient()) < 6


def test_truncated_cmyk_jpeg_is_refused() -> None:
    data = saved(PIL.Image.fromarray(gradient()).convert("CMYK"), "JPEG")
    with pytest.raises(InvalidInputError, match="truncated or corrupt JPEG"):
        decode_image(data[: len(data) * 3 // 4], ImageEncoding.JPEG)


def test_progressive_jpeg_is_read() -> None:
    data = saved(PIL.Image.fromarray(gradient()), "JPEG", progressive=True, quality=95)
    assert mean_difference(decode_image(data, ImageEncoding.JPEG), gradient()) < 6


def test_jpeg_with_endless_scans_is_refused() -> None:
    data = encode_image(gradient(), ImageEncoding.JPEG) + b"\xff\xda" * 1000
    with pytest.raises(TooLargeError, match="1001 JPEG scans; at most 200"):
        decode_image(data, ImageEncoding.JPEG)


def test_alpha_is_dropped() -> None:
    rgba = np.dstack([gradient(), np.full((32, 48), 7, np.uint8)])
    data = saved(PIL.Image.fromarray(rgba), "PNG")
    np.testing.assert_array_equal(decode_image(data, ImageEncoding.PNG), gradient())


def test_palette_becomes_rgb_even_with_transparent_entries() -> None:
    picture = PIL.Image.fromarray(gradient()).quantize(16)
    data = saved(picture, "PNG", transparency=bytes(range(0, 256, 16)))
    expected = np.array(picture.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, ImageEncoding.PNG), expected)


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    grey = gradient()[:, :, 0].astype(np.uint16) << 8
    _, data = cv2.imencode(".png", grey | 0x7F)
    image = decode_image(data.tobytes(), ImageEncoding.PNG)
    np.testing.assert_array_equal(image, np.repeat(gradient()[:, :, :1], 3, axis=2))


def test_sixteen_bit_colour_keeps_its_upper_byte() -> None:
    _, data = cv2.imencode(".png", gradient()[:, :, ::-1].astype(np.uint16) << 8)
    np.testing.assert_array_equal(decode_image(data.tobytes(), ImageEncoding.PNG), gradient())


def test_one_bit_png_becomes_black_and_white() -> None:
    data = saved(PIL.Image.fromarray(gradient()).convert("1"), "PNG")
    assert set(np.unique(decode_image(data, ImageEncoding.PNG))) == {0, 255}


def test_exif_orientation_is_ignored() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = saved(PIL.Image.fromarray(gradient()), "JPEG", exif=exif)
    assert decode_image(data, ImageEncoding.JPEG).shape == (32, 48, 3)


@pytest.mark.parametrize("encoding", ImageEncoding)
def test_empty_data_is_refused(encoding: ImageEncoding) -> None:
    with pytest.raises(InvalidInputError, match=r"frame\.data is empty") as refusal:
        decode_image(b"", encoding, width=48, height=32)
    assert refusal.value.field == "frame.data"


@pytest.mark.parametrize("encoding", COMPRESSED)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_data_is_refused(encoding: ImageEncoding, share: float) -> None:
    data = encode_image(gradient(), encoding)
    with pytest.raises(InvalidInputError) as refusal:
        decode_image(data[: int(len(data) * share)], encoding)
    assert refusal.value.field == "frame.data"
    assert "truncated or corrupt" in refusal.value.message


def test_jpeg_without_its_last_byte_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="Premature end"):
        decode_image(encode_image(gradient(), ImageEncoding.JPEG)[:-1], ImageEncoding.JPEG)


def test_png_with_a_flipped_bit_is_refused() -> None:
    data = bytearray(encode_image(gradient(), ImageEncoding.PNG))
    data[len(data) // 2] ^= 1
    with pytest.raises(InvalidInputError, match="truncated or corrupt PNG"):
        decode_image(bytes(data), ImageEncoding.PNG)


@pytest.mark.parametrize(("encoding", "other"), [COMPRESSED, COMPRESSED[::-1]])
def test_data_of_another_format_is_refused(encoding: ImageEncoding, other: ImageEncoding) -> None:
    with pytest.raises(InvalidInputError, match=f"is not {encoding.upper()}: it starts with"):
        decode_image(encode_image(gradient(), other), encoding)


@pytest.mark.parametrize("encoding", COMPRESSED)
@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (47, 0, r"width 48, but frame\.width is 47"),
        (0, 31, r"height 32, but frame\.height is 31"),
    ],
)
def test_another_size_than_announced_is_refused(
    encoding: ImageEncoding, width: int, height: int, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        decode_image(encode_image(gradient(), encoding), encoding, width=width, height=height)


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_the_announced_size_is_accepted(encoding: ImageEncoding) -> None:
    data = encode_image(gradient(), encoding)
    assert decode_image(data, encoding, width=48, height=32).shape == (32, 48, 3)


@pytest.mark.parametrize(("width", "height", "field"), [(0, 32, "width"), (48, 0, "height")])
def test_raw_needs_its_size(width: int, height: int, field: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{field} is 0; raw RGB needs") as refusal:
        decode_image(gradient().tobytes(), ImageEncoding.RAW_RGB, width=width, height=height)
    assert refusal.value.field == f"frame.{field}"


@pytest.mark.parametrize("num_bytes", [1, 3 * 48 * 32 - 1, 3 * 48 * 32 + 1])
def test_raw_needs_exactly_its_bytes(num_bytes: int) -> None:
    with pytest.raises(InvalidInputError, match="raw RGB of 48x32 has 4608"):
        decode_image(bytes(num_bytes), ImageEncoding.RAW_RGB, width=48, height=32)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (png_stating_size(100_000, 100_000), ImageEncoding.PNG),
        (jpeg_stating_size(60_000, 60_000), ImageEncoding.JPEG),
    ],
)
def test_a_huge_header_is_refused_before_pixels_are_decoded(
    data: bytes, encoding: ImageEncoding
) -> None:
    with pytest.raises(TooLargeError, match="a side may have at most 16384 pixels") as refusal:
        decode_image(data, encoding)
    assert refusal.value.field == "frame.data"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (png_stating_size(16_000, 16_000), ImageEncoding.PNG),
        (jpeg_stating_size(16_000, 16_000), ImageEncoding.JPEG),
    ],
)
def test_many_pixels_in_fair_sides_are_refused(data: bytes, encoding: ImageEncoding) -> None:
    with pytest.raises(TooLargeError, match="256000000 pixels; at most 9437184"):
        decode_image(data, encoding)


@pytest.mark.parametrize("encoding", ImageEncoding)
def test_limits_can_be_set(encoding: ImageEncoding) -> None:
    data = encode_image(gradient(), encoding)

    def decode(limits: ImageLimits) -> Image:
        return decode_image(data, encoding, width=48, height=32, limits=limits)

    assert decode(ImageLimits(len(data), 48 * 32, 48)).shape == (32, 48, 3)
    with pytest.raises(TooLargeError, match=f"has {len(data)} bytes; at most {len(data) - 1}"):
        decode(ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(TooLargeError, match="48x32, 1536 pixels; at most 1535"):
        decode(ImageLimits(max_pixels=48 * 32 - 1))
    with pytest.raises(TooLargeError, match="48x32; a side may have at most 47"):
        decode(ImageLimits(max_side=47))


@given(
    st.sampled_from(COMPRESSED),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.none() | st.integers(0, 10_000),
)
def test_broken_data_raises_nothing_but_our_errors(
    encoding: ImageEncoding, changes: list[tuple[int, int]], end: int | None
) -> None:
    data = bytearray(encode_image(gradient(), encoding))
    for place, value in changes:
        data[place % len(data)] = value
    if end is not None:
        del data[end % len(data) :]
    with suppress(SegstreamError):
        assert decode_image(bytes(data), encoding).ndim == 3


@given(st.sampled_from(COMPRESSED), st.binary(max_size=200))
def test_noise_behind_the_magic_is_refused(encoding: ImageEncoding, noise: bytes) -> None:
    magic = encode_image(gradient(), encoding)[:8]
    with pytest.raises(InvalidInputError):
        decode_image(magic + noise, encoding)


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_encodings_are_told_by_their_first_bytes(encoding: ImageEncoding) -> None:
    assert detect_image_encoding(encode_image(gradient(), encoding)) is encoding


@pytest.mark.parametrize(
    ("data", "start"), [(b"", "it is empty"), (b"GIF89a", "it starts with 474946383961")]
)
def test_unknown_first_bytes_are_refused(data: bytes, start: str) -> None:
    with pytest.raises(InvalidInputError, match=f"neither JPEG nor PNG: {start}"):
        detect_image_encoding(data)


@pytest.mark.parametrize("max_height", [0, 32, 33])
def test_images_that_fit_are_returned_as_they_are(max_height: int) -> None:
    image = gradient()
    assert fit_height(image, max_height) is image


@pytest.mark.parametrize(
    ("width", "height", "fitted"), [(48, 32, (16, 24)), (49, 32, (16, 24)), (1, 100, (16, 1))]
)
def test_higher_images_shrink_in_proportion(
    width: int, height: int, fitted: tuple[int, int]
) -> None:
    assert fit_height(gradient(width, height), 16).shape == (*fitted, 3)


def test_shrinking_averages_areas() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[::2] = 200
    assert (fit_height(image, 2) == 100).all()
