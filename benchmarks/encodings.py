"""What label maps, overlays and confidence maps weigh on the wire, and what packing them takes.

    python benchmarks/encodings.py [--json] [--clip PATH] [--frames N]

Segments the frames of a video at 360x480 and 512x1024, packs what comes of them in every encoding,
unpacks it and compares. Of each encoding: the mean of the bytes per frame and the medians of the
milliseconds, of processor time on one thread. A delta is told against the label map before, as to a
client that answers at once. Beside the clip stands a camera that does not move: the same frame
again and again, with the noise of a sensor and a patch of the next frame that passes by. At last,
other ways to tell a delta.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import zstandard
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from segstream.bench.clips import add_clip
from segstream.checkpoints import DEFAULT
from segstream.engine import Step
from segstream.engine.executor import Prediction
from segstream.engine.runtimes import make_executor
from segstream.label_sets import LabelSet
from segstream.media.confidence import decode_confidence, encode_confidence
from segstream.media.images import Image, ImageEncoding, decode_image, encode_image
from segstream.media.label_maps import (
    IdSpace,
    LabelMap,
    LabelMapEncoding,
    decode_label_map,
    encode_delta,
    encode_label_map,
)
from segstream.media.overlay import draw_overlay
from segstream.media.video import VideoReader
from segstream.models import load, model_digest
from segstream.pages import empty_pages
from segstream.wire import DEFAULT_OVERLAY_OPACITY, DEFAULT_OVERLAY_QUALITY

ROOT = Path(__file__).parent.parent
SIZES = ((360, 480), (512, 1024))
NUM_WARM_UP = 2
NOISE = 2.0

_R = TypeVar("_R")
Packing = tuple[
    Callable[[], bytes], Callable[[bytes], NDArray[np.uint8]], "NDArray[np.uint8] | None"
]
"""Packs something, unpacks it, and what must come of it; None = nothing exact."""


@dataclass(frozen=True)
class Segmented:
    """A frame and what the network says of it."""

    image: Image
    label_map: LabelMap
    confidence: NDArray[np.uint8]


def scaled(images: Sequence[Image], height: int, width: int) -> list[Image]:
    size = (width, height)
    return [np.asarray(cv2.resize(image, size), np.uint8) for image in images]


def standing_still(images: Sequence[Image]) -> list[Image]:
    """The first image over and over, with noise and a patch of the next ones that moves through."""
    rng = np.random.default_rng(0)
    height, width = images[0].shape[:2]
    side = height // 5
    found = []
    for index, other in enumerate(images):
        noisy = images[0] + rng.normal(0, NOISE, images[0].shape)
        left = index * (width - side) // len(images)
        noisy[height // 2 : height // 2 + side, left : left + side] = other[:side, :side]
        found.append(noisy.round().clip(0, 255).astype(np.uint8))
    return found


def segment(images: Sequence[Image]) -> tuple[list[Segmented], LabelSet]:
    """With memory, as a session does."""
    model = load(DEFAULT)
    execute = make_executor(model, model_digest(model), runtime="auto", device="cpu")
    length = model.config.memory_length
    pages = empty_pages(model.page_geometry(*images[0].shape[:2]), length + 1)
    found = []
    for index, image in enumerate(images):
        read = tuple(i % (length + 1) for i in range(max(0, index - length), index))
        step = Step("", image, pages, read, index % (length + 1), wants_confidence=True)
        [prediction] = execute([step], lambda _: None)
        found.append(segmented(image, prediction))
    return found, model.config.label_set


def segmented(image: Image, prediction: Prediction) -> Segmented:
    assert prediction.label_map is not None
    assert prediction.confidence is not None
    return Segmented(image, prediction.label_map, prediction.confidence)


def timed(run: Callable[[], _R]) -> tuple[_R, float]:
    """The result, and milliseconds of processor time: what else runs here does not count."""
    started = time.thread_time()
    result = run()
    return result, 1000 * (time.thread_time() - started)


def measure(name: str, packs: Iterator[Packing]) -> dict[str, Any]:
    sizes, encode_ms, decode_ms = [], [], []
    for pack, unpack, expected in packs:
        data, ms = timed(pack)
        found, back_ms = timed(partial(unpack, data))
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
        sizes.append(len(data))
        encode_ms.append(ms)
        decode_ms.append(back_ms)
    return {
        "encoding": name,
        "bytes_per_frame": round(statistics.mean(sizes)),
        "encode_ms": statistics.median(encode_ms),
        "decode_ms": statistics.median(decode_ms),
    }


def measure_all(frames: Sequence[Segmented], label_set: LabelSet) -> list[dict[str, Any]]:
    height, width = frames[0].label_map.shape
    later = list(pairwise(frames))[NUM_WARM_UP:]
    size = {"width": width, "height": height}

    def whole(encoding: LabelMapEncoding) -> Iterator[Packing]:
        for _, frame in later:
            yield (
                partial(encode_label_map, frame.label_map, encoding, IdSpace.TRAIN_ID, label_set),
                partial(decode_label_map, encoding=encoding, **size),
                frame.label_map,
            )

    deltas: Iterator[Packing] = (
        (
            partial(sent_delta, frame.label_map, before.label_map, label_set),
            partial(read_delta, base=before.label_map, expected=frame.label_map),
            frame.label_map,
        )
        for before, frame in later
    )
    read_jpeg = partial(decode_image, encoding=ImageEncoding.JPEG)
    overlays: Iterator[Packing] = (
        (partial(pack_overlay, frame, label_set), read_jpeg, None) for _, frame in later
    )
    read_png = partial(decode_confidence, **size)
    confidences: Iterator[Packing] = (
        (partial(encode_confidence, frame.confidence), read_png, frame.confidence)
        for _, frame in later
    )
    of_ids = [each for each in LabelMapEncoding if each.holds_ids]
    names = ["delta, whole" if each is LabelMapEncoding.DELTA else each.value for each in of_ids]
    return [
        *(measure(name, whole(each)) for name, each in zip(names, of_ids, strict=True)),
        measure("delta", deltas),
        measure("overlay_jpeg", overlays),
        measure("confidence", confidences),
    ]


def sent_delta(label_map: LabelMap, base: LabelMap, label_set: LabelSet) -> bytes:
    """What the service sends: the change, or the whole where that is smaller."""
    whole = encode_label_map(label_map, LabelMapEncoding.DELTA, IdSpace.TRAIN_ID, label_set)
    return min(encode_delta(label_map, base), whole, key=len)


def read_delta(data: bytes, *, base: LabelMap, expected: LabelMap) -> LabelMap:
    height, width = base.shape
    changed = decode_label_map(data, LabelMapEncoding.DELTA, width, height, base=base)
    if np.array_equal(changed, expected):
        return changed
    return decode_label_map(data, LabelMapEncoding.DELTA, width, height)


def pack_overlay(frame: Segmented, label_set: LabelSet) -> bytes:
    overlay = draw_overlay(frame.image, frame.label_map, label_set, opacity=DEFAULT_OVERLAY_OPACITY)
    return encode_image(overlay, ImageEncoding.JPEG, quality=DEFAULT_OVERLAY_QUALITY)


def xor_zstd(label_map: LabelMap, base: LabelMap) -> bytes:
    return zstandard.ZstdCompressor(1).compress(np.bitwise_xor(label_map, base).tobytes())


def mask_zstd(label_map: LabelMap, base: LabelMap) -> bytes:
    is_changed = label_map != base
    packed = np.packbits(is_changed).tobytes() + label_map[is_changed].tobytes()
    return zstandard.ZstdCompressor(1).compress(packed)


def dictionary_zstd(label_map: LabelMap, base: LabelMap, level: int) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(
        base.tobytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT
    )
    return zstandard.ZstdCompressor(level, dict_data=dictionary).compress(label_map.tobytes())


CODECS: dict[str, Callable[[LabelMap, LabelMap], bytes]] = {
    "XOR, zstd 1": xor_zstd,
    "mask and values, zstd 1": mask_zstd,
    "previous map as dictionary, zstd 1": partial(dictionary_zstd, level=1),
    "previous map as dictionary, zstd 6": partial(dictionary_zstd, level=6),
    "runs of the XOR, deflate (chosen)": encode_delta,
}


def compare_codecs(frames: Sequence[Segmented]) -> list[dict[str, Any]]:
    found = []
    for name, pack in CODECS.items():
        pairs = list(pairwise(frames))[NUM_WARM_UP:]
        packed = [timed(partial(pack, b.label_map, a.label_map)) for a, b in pairs]
        found.append(
            {
                "codec": name,
                "bytes_per_frame": round(statistics.mean(len(data) for data, _ in packed)),
                "encode_ms": statistics.median(ms for _, ms in packed),
            }
        )
    return found


def show(results: Sequence[dict[str, Any]]) -> None:
    for result in results:
        title = f"{result['size']}, {result['camera']} camera"
        table = Table("encoding", "bytes per frame", "encode, ms", "decode, ms", title=title)
        for row in result["encodings"]:
            numbers = f"{row['bytes_per_frame']:,}", f"{row['encode_ms']:.2f}"
            table.add_row(row["encoding"], *numbers, f"{row['decode_ms']:.2f}")
        codecs = Table("way to tell a delta", "bytes per frame", "encode, ms")
        for row in result["delta_codecs"]:
            codecs.add_row(row["codec"], f"{row['bytes_per_frame']:,}", f"{row['encode_ms']:.2f}")
        Console().print(table, codecs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    add_clip(parser, ROOT)
    parser.add_argument("--frames", type=int, default=30)
    options = parser.parse_args()
    with VideoReader(options.clip) as reader:
        film = [frame for frame, _ in zip(reader, range(options.frames), strict=False)]
    cv2.setNumThreads(1)
    results = []
    for height, width in SIZES:
        images = scaled(film, height, width)
        for camera, seen in (("moving", images), ("still", standing_still(images))):
            frames, label_set = segment(seen)
            results.append(
                {
                    "size": f"{height}x{width}",
                    "camera": camera,
                    "encodings": measure_all(frames, label_set),
                    "delta_codecs": compare_codecs(frames),
                }
            )
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
