"""LMANet-PSPNet in plain numpy float64, as tests/oracle.py is for ERFNet and in its style.

Nothing is shared with the product; the common layers come from the other oracle.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from tests.oracle import (
    FloatArray,
    Shapes,
    Weights,
    conv2d,
    local_memory_read,
    named_conv2d,
    relu,
    sigmoid,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)
BINS = (1, 2, 3, 6)
BACKBONE_EPS, FUSION_EPS = 1e-5, 1e-3
FEATURES = 2048


def batch_norm(x: FloatArray, weights: Weights, name: str, eps: float) -> FloatArray:
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    normalised = (x - mean[:, None, None]) / np.sqrt(variance + eps)[:, None, None]
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return normalised * scale[:, None, None] + shift[:, None, None]


def convolved(
    x: FloatArray, weights: Weights, conv: str, bn: str, *, stride: int = 1, dilation: int = 1
) -> FloatArray:
    """A convolution without bias that keeps the size but for its stride, and its batch norm."""
    weight = weights[f"{conv}.weight"]
    reach = dilation * (weight.shape[-1] // 2)
    y = conv2d(
        x,
        weight,
        np.zeros(len(weight)),
        stride=stride,
        padding=(reach, reach),
        dilation=(dilation, dilation),
    )
    return batch_norm(y, weights, bn, BACKBONE_EPS)


def max_pool_3x3(x: FloatArray) -> FloatArray:
    """Stride 2, with a border of one pixel that never wins."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = (x.shape[1] - 1) // 2 + 1, (x.shape[2] - 1) // 2 + 1
    views = [
        padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    pooled: FloatArray = np.maximum.reduce(views)
    return pooled


def bottleneck(
    x: FloatArray, weights: Weights, name: str, stride: int, dilation: int
) -> FloatArray:
    y = relu(convolved(x, weights, f"{name}.conv1", f"{name}.bn1"))
    y = convolved(y, weights, f"{name}.conv2", f"{name}.bn2", stride=stride, dilation=dilation)
    y = convolved(relu(y), weights, f"{name}.conv3", f"{name}.bn3")
    if f"{name}.downsample.0.weight" in weights:
        down = f"{name}.downsample"
        x = convolved(x, weights, f"{down}.0", f"{down}.1", stride=stride)
    return relu(x + y)


def encode(frame: FloatArray, weights: Weights, depth: int) -> FloatArray:
    """`frame` (3, 8n + 1, 8m + 1) in 0..1 -> (2048, n + 1, m + 1)."""
    x = (frame - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    for index, stride in ((0, 2), (3, 1), (6, 1)):
        conv, bn = f"encoder.layer0.{index}", f"encoder.layer0.{index + 1}"
        x = relu(convolved(x, weights, conv, bn, stride=stride))
    x = max_pool_3x3(x)
    for stage, num_blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(num_blocks):
            stride = STRIDES[stage - 1] if block == 0 else 1
            name = f"encoder.layer{stage}.{block}"
            x = bottleneck(x, weights, name, stride, DILATIONS[stage - 1])
    return x


def adaptive_mean(x: FloatArray, side: int) -> FloatArray:
    """Means over `side` x `side` cells, which overlap where the map does not divide."""
    channels, height, width = x.shape
    out = np.zeros((channels, side, side))
    for i in range(side):
        for j in range(side):
            top, bottom = i * height // side, -(-(i + 1) * height // side)
            left, right = j * width // side, -(-(j + 1) * width // side)
            out[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


def resize(x: FloatArray, height: int, width: int) -> FloatArray:
    """Bilinear; the outermost pixels of both maps lie on each other."""
    for axis, size in ((1, height), (2, width)):
        before = x.shape[axis]
        at = np.arange(size) * ((before - 1) / (size - 1) if size > 1 else 0.0)
        low = np.minimum(np.floor(at).astype(int), before - 1)
        high = np.minimum(low + 1, before - 1)
        share = np.expand_dims(at - low, tuple(a for a in range(3) if a != axis))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def decode(features: FloatArray, weights: Weights) -> FloatArray:
    """(2048, n + 1, m + 1) -> logits (20, 8n + 1, 8m + 1), the last of them 0."""
    _, height, width = features.shape
    branches = [features]
    for index, side in enumerate(BINS):
        name = f"ppm.features.{index}"
        pooled = relu(convolved(adaptive_mean(features, side), weights, f"{name}.1", f"{name}.2"))
        branches.append(resize(pooled, height, width))
    x = relu(convolved(np.concatenate(branches), weights, "decoder.cls.0", "decoder.cls.1"))
    logits = named_conv2d(x, weights, "decoder.cls.4", padding=(0, 0))
    logits = np.concatenate([logits, np.zeros((1, height, width))])
    return resize(logits, 8 * (height - 1) + 1, 8 * (width - 1) + 1)


def fuse(query: FloatArray, memory: FloatArray, weights: Weights) -> FloatArray:
    """The `sigmoid-down1` fusion: one convolution thins both inputs."""
    name = "memory_fusion"

    def pointwise(x: FloatArray, layer: int) -> FloatArray:
        return named_conv2d(x, weights, f"{name}.conv_layer_{layer}", padding=(0, 0))

    thin = pointwise(query, 1) + pointwise(memory, 1)
    thin = relu(batch_norm(thin, weights, f"{name}.bn0", FUSION_EPS))
    gated = query * sigmoid(pointwise(thin, 3)) + memory * sigmoid(pointwise(thin, 4))
    return relu(batch_norm(gated, weights, f"{name}.bn", FUSION_EPS))


def pad_to_stride(frame: FloatArray) -> FloatArray:
    """Right and bottom borders repeated until both sides are multiples of 8, plus 1."""
    _, height, width = frame.shape
    grown = ((0, 0), (0, -(height - 1) % 8), (0, -(width - 1) % 8))
    return np.pad(frame, grown, mode="edge")


def segment_single(frame: FloatArray, weights: Weights, depth: int) -> FloatArray:
    """Logits of a frame (3, H, W) by the network without memory."""
    _, height, width = frame.shape
    return decode(encode(pad_to_stride(frame), weights, depth), weights)[:, :height, :width]


def stream(
    frames: Sequence[FloatArray],
    weights: Weights,
    memory_length: int,
    window_size: int,
) -> list[FloatArray]:
    """Logits of each frame (3, H, W): the memory is read first, then the frame joins it."""
    memory: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=memory_length)
    logits = []
    for frame in frames:
        _, height, width = frame.shape
        features = encode(pad_to_stride(frame), weights, 101)
        decoded = features
        if memory:
            query = named_conv2d(features, weights, "kv_Q_r4.Key")
            keys, values = [key for key, _ in memory], [value for _, value in memory]
            readout = local_memory_read(query, keys, values, window_size, FEATURES)
            decoded = fuse(features, readout, weights)
        memory.append((named_conv2d(features, weights, "kv_M_r4.Key"), features))
        logits.append(decode(decoded, weights)[:, :height, :width])
    return logits


def _bn(name: str, channels: int) -> Shapes:
    entries = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{entry}": (channels,) for entry in entries} | {
        f"{name}.num_batches_tracked": ()
    }


def _conv_bn(conv: str, bn: str, *shape: int) -> Shapes:
    return {f"{conv}.weight": shape, **_bn(bn, shape[0])}


def _conv(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def _stage(name: str, in_channels: int, planes: int, num_blocks: int) -> Shapes:
    shapes: Shapes = {}
    for index in range(num_blocks):
        block = f"{name}.{index}"
        shapes |= _conv_bn(f"{block}.conv1", f"{block}.bn1", planes, in_channels, 1, 1)
        shapes |= _conv_bn(f"{block}.conv2", f"{block}.bn2", planes, planes, 3, 3)
        shapes |= _conv_bn(f"{block}.conv3", f"{block}.bn3", 4 * planes, planes, 1, 1)
        if index == 0:
            down = f"{block}.downsample"
            shapes |= _conv_bn(f"{down}.0", f"{down}.1", 4 * planes, in_channels, 1, 1)
        in_channels = 4 * planes
    return shapes


def single_frame_shapes(depth: int) -> Shapes:
    """Every entry of the network without memory, under LMANet's names."""
    shapes: Shapes = {}
    for index, shape in ((0, (64, 3, 3, 3)), (3, (64, 64, 3, 3)), (6, (128, 64, 3, 3))):
        name = "encoder.layer0"
        shapes |= _conv_bn(f"{name}.{index}", f"{name}.{index + 1}", *shape)
    in_channels = 128
    for stage, num_blocks in enumerate(BLOCKS[depth], start=1):
        planes = 32 * 2**stage
        shapes |= _stage(f"encoder.layer{stage}", in_channels, planes, num_blocks)
        in_channels = 4 * planes
    for index in range(len(BINS)):
        name = f"ppm.features.{index}"
        shapes |= _conv_bn(f"{name}.1", f"{name}.2", 512, FEATURES, 1, 1)
    shapes |= _conv_bn("decoder.cls.0", "decoder.cls.1", 512, 2 * FEATURES, 3, 3)
    return shapes | _conv("decoder.cls.4", 19, 512, 1, 1)


def published_shapes() -> Shapes:
    """Every entry of a published PSPNet-101 LMANet checkpoint."""
    shapes = single_frame_shapes(101)
    for head in ("kv_M_r4", "kv_Q_r4"):
        shapes |= _conv(f"{head}.Key", 128, FEATURES, 3, 3)
    name = "memory_fusion"
    shapes |= _bn(f"{name}.bn0", 256) | _bn(f"{name}.bn", FEATURES)
    for layer in (1, 2):
        shapes |= _conv(f"{name}.conv_layer_{layer}", 256, FEATURES, 1, 1)
    for layer in (3, 4):
        shapes |= _conv(f"{name}.conv_layer_{layer}", FEATURES, 256, 1, 1)
    return shapes


def semseg_name(name: str) -> str:
    """What semseg calls an entry of the single-frame network."""
    if name.startswith("encoder."):
        return name.removeprefix("encoder.")
    return name.removeprefix("decoder.")


def random_weights(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """float32, with batch norms far from the identity, and all of them of some effect."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    drawn: np.ndarray
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            drawn = np.array(float(rng.integers(1, 1_000_000)), np.float32)
        elif name.endswith("running_var"):
            drawn = rng.uniform(0.5, 2.0, shape)
        elif name.endswith(("running_mean", "bias")):
            drawn = rng.normal(0.0, 0.2, shape)
        elif len(shape) == 1:
            # The blocks' last norms are small: what a hundred layers add up must not grow.
            drawn = rng.uniform(0.5, 1.2, shape) * (0.3 if "bn3" in name else 1.0)
        else:
            # Small keys keep the softmax over the window from picking a single neighbour.
            gain = 0.02 if ".Key." in name else 1.5
            scale = np.float32(np.sqrt(gain / np.prod(shape[1:])))
            drawn = rng.standard_normal(shape, np.float32) * scale
        weights[name] = np.asarray(drawn, np.float32)
    return weights
