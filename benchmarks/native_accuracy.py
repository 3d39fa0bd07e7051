"""How far the runtimes agree on trained weights.

    python benchmarks/native_accuracy.py CLIP CAMVID

Prints JSON: the share of pixels of the video CLIP that two runtimes label alike, on average and in
the worst frame, and the mIoU of each over the validation frames in the folder CAMVID, as a stream.
"""

import itertools
import json
import statistics
import sys
from pathlib import Path

import av
import torch
from torch import Tensor

from segstream.label_sets import CAMVID
from segstream.models import Runtime, load
from segstream.models.stream import LMANetStream
from segstream.training.camvid import load_camvid
from segstream.training.metrics import ConfusionMatrix

MODEL = "lmanet-erfnet-camvid"
RUNTIMES: tuple[Runtime, ...] = ("native", "onnx", "torch")


def label_maps(streams: dict[Runtime, LMANetStream], image: Tensor) -> dict[Runtime, Tensor]:
    frame = image.permute(2, 0, 1)[None].float() / 255
    return {
        runtime: stream.step(frame)[0, : CAMVID.num_classes].argmax(dim=0).to(torch.uint8)
        for runtime, stream in streams.items()
    }


def agreement(streams: dict[Runtime, LMANetStream], clip: str) -> dict[str, dict[str, float]]:
    shares: dict[str, list[float]] = {}
    with av.open(clip) as video:
        for frame in video.decode(video=0):
            found = label_maps(streams, torch.from_numpy(frame.to_ndarray(format="rgb24")))
            for one, other in itertools.combinations(RUNTIMES, 2):
                share = (found[one] == found[other]).double().mean().item()
                shares.setdefault(f"{one}, {other}", []).append(share)
    return {
        pair: {"frames": len(each), "mean": statistics.mean(each), "worst": min(each)}
        for pair, each in shares.items()
    }


def miou(streams: dict[Runtime, LMANetStream], root: Path) -> dict[Runtime, float]:
    confusions = {runtime: ConfusionMatrix(CAMVID.num_classes) for runtime in streams}
    for sample in load_camvid(root, "val"):
        for runtime, found in label_maps(streams, torch.from_numpy(sample.image)).items():
            confusions[runtime].update(sample.label, found.numpy())
    return {runtime: confusion.miou() for runtime, confusion in confusions.items()}


def main() -> None:
    clip, root = sys.argv[1:]
    model = load(MODEL)
    streams = {runtime: model.stream(runtime=runtime) for runtime in RUNTIMES}
    agreements = agreement(streams, clip)
    for stream in streams.values():
        stream.reset()
    result = {"agreement": agreements, "miou": miou(streams, Path(root))}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
