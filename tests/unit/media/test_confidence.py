import io

import numpy as np
import PIL.Image
import pytest

from segstream.errors import InvalidInputError
from segstream.media.confidence import decode_confidence, encode_confidence

CONFIDENCE = np.random.default_rng(0).integers(0, 256, (7, 11), np.uint8)


def test_every_value_survives() -> None:
    for confidence in (CONFIDENCE, CONFIDENCE[:, ::2], CONFIDENCE.T):
        height, width = confidence.shape
        found = decode_confidence(encode_confidence(confidence), width, height)
        np.testing.assert_array_equal(found, confidence)
        assert found.flags.writeable


def test_it_is_a_grey_png() -> None:
    picture = PIL.Image.open(io.BytesIO(encode_confidence(CONFIDENCE)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (11, 7))


@pytest.mark.parametrize("size", [(7, 11), (11, 8), (1, 1)])
def test_another_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="a PNG of 11x7 and mode L") as refusal:
        decode_confidence(encode_confidence(CONFIDENCE), *size)
    assert refusal.value.field == "label_map.confidence"


def test_what_is_no_png_is_refused() -> None:
    packed = encode_confidence(CONFIDENCE)
    for broken in (b"", b"GIF89a", packed[:-20]):
        with pytest.raises(InvalidInputError, match="truncated or corrupt PNG"):
            decode_confidence(broken, 11, 7)
