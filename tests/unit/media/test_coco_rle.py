from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segstream.media.coco_rle import encode_coco_rle


def test_the_example_that_the_format_is_known_by() -> None:
    mask = np.array([[False, True], [True, True]])
    assert encode_coco_rle(mask) == {"size": [2, 2], "counts": "13"}


# Its decoder, which only tests use, is not quite up to numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (48, 64)])
def test_masks_survive(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) > 0.5
    packed: Any = encode_coco_rle(mask)
    assert np.array_equal(coco_mask.decode(packed), mask)
