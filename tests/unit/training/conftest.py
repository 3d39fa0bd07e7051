"""A tiny CamVid of drawn streets."""

from pathlib import Path

import cv2
import numpy as np
import pytest

HEIGHT, WIDTH = 72, 96
SKY, ROAD, CAR, VOID = 0, 3, 8, 11


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Six stills a split: sky over road, a car that moves, a column of void."""
    root = tmp_path / "camvid"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for number in range(6):
            image, label = _street(number, rng)
            cv2.imwrite(str(root / split / f"{number:04d}.png"), image)
            cv2.imwrite(str(root / f"{split}annot" / f"{number:04d}.png"), label)
    return root


def _street(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    label = np.full((HEIGHT, WIDTH), SKY, np.uint8)
    label[HEIGHT // 2 :] = ROAD
    label[40:60, 8 * number : 8 * number + 24] = CAR
    colours = np.zeros((12, 3))
    colours[[SKY, ROAD, CAR]] = (230, 180, 120), (60, 60, 60), (20, 20, 200)
    image = np.clip(colours[label] + rng.normal(0, 5, (HEIGHT, WIDTH, 3)), 0, 255)
    label[:, -4:] = VOID
    return image.astype(np.uint8), label
