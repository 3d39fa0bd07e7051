import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from segstream.errors import InvalidInputError
from segstream.media.coco_rle import decode_coco_rle, encode_coco_rle


def test_the_example_that_the_format_is_known_by() -> None:
    mask = np.array([[False, True], [True, True]])
    assert encode_coco_rle(mask) == {"size": [2, 2], "counts": "13"}


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_masks_survive(height: int, width: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share * rng.random((1, width))
    assert np.array_equal(decode_coco_rle(encode_coco_rle(mask), "mask"), mask)


# The decoder of pycocotools is not quite up to numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (48, 64), (900, 1400)])
def test_masks_are_read_as_pycocotools_reads_them(shape: tuple[int, int]) -> None:
    height, width = shape
    mask = (np.add.outer(np.arange(height) ** 2, np.arange(width) * 3) // (height + 1)) % 3 == 0
    packed = encode_coco_rle(mask)
    theirs = coco_mask.decode({"size": packed["size"], "counts": packed["counts"].encode()})
    assert np.array_equal(theirs, mask)
    assert np.array_equal(decode_coco_rle(packed, "mask"), mask)


@pytest.mark.parametrize("counts", ["", "1", "13P", "14", "PPPPPPPPPP0", "1 3", "1\x003", "o3"])
def test_counts_that_are_no_mask_of_this_size_are_refused(counts: str) -> None:
    with pytest.raises(InvalidInputError, match="mask has") as refusal:
        decode_coco_rle({"size": [2, 2], "counts": counts}, "mask")
    assert refusal.value.field == "mask"


@given(st.text("0123456789:;<=>?@MNOPQabcmno", max_size=40))
def test_whatever_the_counts_nothing_but_our_errors_is_raised(counts: str) -> None:
    try:
        mask = decode_coco_rle({"size": [3, 5], "counts": counts}, "mask")
    except InvalidInputError:
        return
    assert mask.shape == (3, 5)
