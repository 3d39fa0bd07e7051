import cv2
import numpy as np

from segstream.training.optical_flow import dis_flow, warped


def texture(shift: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (96, 160)).astype(np.uint8)
    smooth = cv2.equalizeHist(cv2.GaussianBlur(noise, (9, 9), 0))
    return np.repeat(np.roll(smooth, shift, axis=1)[..., None], 3, axis=2).astype(np.uint8)


def test_flow_leads_to_where_things_went() -> None:
    flow = dis_flow(texture(0), texture(5))
    middle = flow[20:-20, 20:-20]
    assert abs(np.median(middle[..., 0]) - 5) < 0.3
    assert abs(np.median(middle[..., 1])) < 0.3


def test_a_warped_label_map_lies_on_the_first_frame() -> None:
    later = np.zeros((10, 20), np.uint8)
    later[:, 12:] = 7
    flow = np.zeros((10, 20, 2), np.float32)
    flow[..., 0] = 4
    seen = warped(later, flow, outside=255)
    assert (seen[:, :8] == 0).all()
    assert (seen[:, 8:16] == 7).all()
    assert (seen[:, 16:] == 255).all()
