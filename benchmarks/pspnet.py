"""What a frame of LMANet on PSPNet costs on CPU: seconds, and the memory of the whole process.

Two frames of 713x713, the size of the published settings; the second one reads the first one's
page. Weights are random.
"""

import argparse
import json
import resource
import time

import torch

from segstream.label_sets import CITYSCAPES
from segstream.models import LMANet, LMANetConfig
from segstream.models.pspnet import pspnet101

_NUM_CHANNELS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=713, help="of the frames, in pixels")
    side = parser.parse_args().side
    config = LMANetConfig(
        CITYSCAPES, _NUM_CHANNELS, memory_length=3, fusion="sigmoid-down1", key_channels=128
    )
    model = LMANet(config, pspnet101(_NUM_CHANNELS)).eval().requires_grad_(False)
    stream = model.stream()
    seconds = []
    for seed in range(2):
        frame = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
        started = time.perf_counter()
        logits = stream.step(frame)
        seconds.append(time.perf_counter() - started)
        assert logits.isfinite().all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "size": f"{side}x{side}",
        "threads": torch.get_num_threads(),
        "first_frame_seconds": seconds[0],
        "second_frame_seconds": seconds[1],
        "peak_resident_gib": peak / 2**30,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
