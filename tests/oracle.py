"""LMANet-ERFNet in plain numpy float64: the yardstick that the product is measured with.

One video at a time, channels first, no torch, nothing shared with the product. Weights are a
mapping of the published names without their `module.` prefix.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Weights = Mapping[str, FloatArray]
Pair = tuple[int, int]
Shapes = dict[str, tuple[int, ...]]

BATCH_NORM_EPS = 1e-3
NUM_CHANNELS = 20
VALUE_CHANNELS = 64
ENCODER_DILATIONS = (2, 4, 8, 16, 2, 4, 8, 16)


def conv2d(
    x: FloatArray,
    weight: FloatArray,
    bias: FloatArray,
    *,
    stride: int = 1,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> FloatArray:
    """`x` (C, H, W), `weight` (O, C, kh, kw) -> (O, H', W')."""
    kernel_height, kernel_width = weight.shape[2:]
    padded = np.pad(x, ((0, 0), (padding[0], padding[0]), (padding[1], padding[1])))
    height = (padded.shape[1] - dilation[0] * (kernel_height - 1) - 1) // stride + 1
    width = (padded.shape[2] - dilation[1] * (kernel_width - 1) - 1) // stride + 1
    out = np.zeros((weight.shape[0], height, width)) + bias[:, None, None]
    for i in range(kernel_height):
        for j in range(kernel_width):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (height - 1) * stride + 1, stride)
            columns = slice(left, left + (width - 1) * stride + 1, stride)
            out += np.tensordot(weight[:, :, i, j], padded[:, rows, columns], axes=1)
    return out


def conv_transpose2d(
    x: FloatArray,
    weight: FloatArray,
    bias: FloatArray,
    *,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
) -> FloatArray:
    """`x` (C, H, W), `weight` (C, O, k, k) -> (O, H', W'): every input pixel stamps the kernel."""
    _, out_channels, kernel, _ = weight.shape
    _, height, width = x.shape
    full = np.zeros(
        (
            out_channels,
            (height - 1) * stride + kernel + output_padding,
            (width - 1) * stride + kernel + output_padding,
        )
    )
    for i in range(kernel):
        for j in range(kernel):
            rows = slice(i, i + (height - 1) * stride + 1, stride)
            columns = slice(j, j + (width - 1) * stride + 1, stride)
            full[:, rows, columns] += np.tensordot(weight[:, :, i, j].T, x, axes=1)
    out_height = full.shape[1] - 2 * padding
    out_width = full.shape[2] - 2 * padding
    out = full[:, padding : padding + out_height, padding : padding + out_width]
    return out + bias[:, None, None]


def max_pool_2x2(x: FloatArray) -> FloatArray:
    pooled: FloatArray = np.maximum.reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    return pooled


def relu(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0.0)


def sigmoid(x: FloatArray) -> FloatArray:
    return np.exp(-np.logaddexp(0.0, -x))


def batch_norm(x: FloatArray, weights: Weights, name: str) -> FloatArray:
    """Evaluation form: the running statistics are used."""
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    normalised = (x - mean[:, None, None]) / np.sqrt(variance + BATCH_NORM_EPS)[:, None, None]
    return (
        normalised * weights[f"{name}.weight"][:, None, None]
        + weights[f"{name}.bias"][:, None, None]
    )


def named_conv2d(
    x: FloatArray,
    weights: Weights,
    name: str,
    *,
    stride: int = 1,
    padding: Pair = (1, 1),
    dilation: Pair = (1, 1),
) -> FloatArray:
    return conv2d(
        x,
        weights[f"{name}.weight"],
        weights[f"{name}.bias"],
        stride=stride,
        padding=padding,
        dilation=dilation,
    )


def down(x: FloatArray, weights: Weights, name: str) -> FloatArray:
    convolved = named_conv2d(x, weights, f"{name}.conv", stride=2)
    return relu(batch_norm(np.concatenate([convolved, max_pool_2x2(x)]), weights, f"{name}.bn"))


def non_bottleneck_1d(x: FloatArray, weights: Weights, name: str, dilation: int) -> FloatArray:
    d = dilation
    y = relu(named_conv2d(x, weights, f"{name}.conv3x1_1", padding=(1, 0)))
    y = named_conv2d(y, weights, f"{name}.conv1x3_1", padding=(0, 1))
    y = relu(batch_norm(y, weights, f"{name}.bn1"))
    y = relu(named_conv2d(y, weights, f"{name}.conv3x1_2", padding=(d, 0), dilation=(d, 1)))
    y = named_conv2d(y, weights, f"{name}.conv1x3_2", padding=(0, d), dilation=(1, d))
    y = batch_norm(y, weights, f"{name}.bn2")
    return relu(x + y)


def up(x: FloatArray, weights: Weights, name: str) -> FloatArray:
    y = conv_transpose2d(
        x,
        weights[f"{name}.conv.weight"],
        weights[f"{name}.conv.bias"],
        stride=2,
        padding=1,
        output_padding=1,
    )
    return relu(batch_norm(y, weights, f"{name}.bn"))


def encode(frame: FloatArray, weights: Weights) -> FloatArray:
    """`frame` (3, H, W) in 0..1, sides multiples of 8 -> (128, H/8, W/8)."""
    x = down(frame, weights, "encoder.initial_block")
    x = down(x, weights, "encoder.layers.0")
    for index in range(1, 6):
        x = non_bottleneck_1d(x, weights, f"encoder.layers.{index}", dilation=1)
    x = down(x, weights, "encoder.layers.6")
    for index, dilation in enumerate(ENCODER_DILATIONS, start=7):
        x = non_bottleneck_1d(x, weights, f"encoder.layers.{index}", dilation)
    return x


def decode(x: FloatArray, weights: Weights) -> FloatArray:
    """(128, h, w) -> logits (20, 8h, 8w)."""
    x = up(x, weights, "decoder.layers.0")
    x = non_bottleneck_1d(x, weights, "decoder.layers.1", dilation=1)
    x = non_bottleneck_1d(x, weights, "decoder.layers.2", dilation=1)
    x = up(x, weights, "decoder.layers.3")
    x = non_bottleneck_1d(x, weights, "decoder.layers.4", dilation=1)
    x = non_bottleneck_1d(x, weights, "decoder.layers.5", dilation=1)
    return conv_transpose2d(
        x, weights["decoder.output_conv.weight"], weights["decoder.output_conv.bias"], stride=2
    )


def key_value(features: FloatArray, weights: Weights, head: str) -> tuple[FloatArray, FloatArray]:
    return (
        named_conv2d(features, weights, f"{head}.Key"),
        named_conv2d(features, weights, f"{head}.Value"),
    )


def shifted(x: FloatArray, dy: int, dx: int) -> FloatArray:
    """`out[:, y, x] = x[:, y + dy, x + dx]`, zero where that lies outside the map."""
    out = np.zeros_like(x)
    height, width = x.shape[1:]
    top, bottom = max(0, -dy), min(height, height - dy)
    left, right = max(0, -dx), min(width, width - dx)
    if top < bottom and left < right:
        out[:, top:bottom, left:right] = x[:, top + dy : bottom + dy, left + dx : right + dx]
    return out


def local_memory_read(
    query: FloatArray,
    keys: Sequence[FloatArray | None],
    values: Sequence[FloatArray | None],
    window_size: int,
    value_channels: int,
    sink: float | None = None,
) -> FloatArray:
    """Query (Dk, h, w), per time a key (Dk, h, w) and a value (Dv, h, w), or None where absent.

    A neighbour outside the map scores 0 like any other zero key and so draws weight; an absent
    time has no scores at all. Nothing to read gives zeros.
    """
    radius = (window_size - 1) // 2
    offsets = range(-radius, radius + 1)
    present = [(k, v) for k, v in zip(keys, values, strict=True) if k is not None and v is not None]

    scores: list[FloatArray] = []
    for key, _ in present:
        for dy in offsets:
            for dx in offsets:
                scores.append((query * shifted(key, dy, dx)).sum(axis=0))
    if sink is not None:
        scores.append(np.full(query.shape[1:], sink))

    readout = np.zeros((value_channels, *query.shape[1:]))
    if not present:
        return readout
    logits = np.stack(scores)
    weights = np.exp(logits - logits.max(axis=0))
    weights /= weights.sum(axis=0)

    position = 0
    for _, value in present:
        for dy in offsets:
            for dx in offsets:
                readout += weights[position] * shifted(value, dy, dx)
                position += 1
    return readout


def fuse(query_value: FloatArray, memory: FloatArray, weights: Weights) -> FloatArray:
    """The `sigmoid-do1` fusion without its dropout: (64, h, w) twice -> (128, h, w)."""
    name = "memory_fusion"
    query = relu(batch_norm(query_value, weights, f"{name}.bn1"))
    read = relu(batch_norm(memory, weights, f"{name}.bn2"))
    both = np.concatenate([query, read])
    query_gate = sigmoid(named_conv2d(both, weights, f"{name}.conv_layer_3"))
    memory_gate = sigmoid(named_conv2d(both, weights, f"{name}.conv_layer_4"))
    gated_query = named_conv2d(query, weights, f"{name}.conv_layer_1") * query_gate
    gated_memory = named_conv2d(read, weights, f"{name}.conv_layer_2") * memory_gate
    return relu(batch_norm(gated_query + gated_memory, weights, f"{name}.bn"))


def read_fuse_decode(
    features: FloatArray,
    memory: Sequence[tuple[FloatArray, FloatArray]],
    weights: Weights,
    window_size: int,
) -> FloatArray:
    """Logits of a frame from its features and the memory, oldest first; no memory, no fusion."""
    if not memory:
        return decode(features, weights)
    const = weights.get("memory_module_local.const")
    sink = None if const is None else float(const.item())
    query_key, query_value = key_value(features, weights, "kv_Q_r4")
    keys, values = [key for key, _ in memory], [value for _, value in memory]
    readout = local_memory_read(query_key, keys, values, window_size, VALUE_CHANNELS, sink)
    return decode(fuse(query_value, readout, weights), weights)


def pad_to_stride(frame: FloatArray) -> FloatArray:
    """Right and bottom borders repeated until both sides are multiples of 8."""
    _, height, width = frame.shape
    return np.pad(frame, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")


class OracleStream:
    """One video, frame by frame: the memory is read first, then the frame joins it."""

    def __init__(self, weights: Weights, memory_length: int, window_size: int) -> None:
        self.weights = weights
        self.window_size = window_size
        self.memory: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=memory_length)

    def step(self, frame: FloatArray) -> FloatArray:
        """`frame` (3, H, W) in 0..1 -> logits (20, H, W)."""
        _, height, width = frame.shape
        features = encode(pad_to_stride(frame), self.weights)
        logits = read_fuse_decode(features, list(self.memory), self.weights, self.window_size)
        self.memory.append(key_value(features, self.weights, "kv_M_r4"))
        return logits[:, :height, :width]


def segment_window(
    frames: Sequence[FloatArray], weights: Weights, memory_length: int, window_size: int
) -> FloatArray:
    """Logits of the last frame, with up to `memory_length` frames before it as memory."""
    _, height, width = frames[-1].shape
    features = [encode(pad_to_stride(frame), weights) for frame in frames]
    remembered = features[:-1][-memory_length:]
    memory = [key_value(earlier, weights, "kv_M_r4") for earlier in remembered]
    logits = read_fuse_decode(features[-1], memory, weights, window_size)
    return logits[:, :height, :width]


def _conv(name: str, *shape: int, transposed: bool = False) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[1 if transposed else 0],)}


def _bn(name: str, channels: int) -> Shapes:
    entries = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{entry}": (channels,) for entry in entries} | {
        f"{name}.num_batches_tracked": ()
    }


def _down_or_up(name: str, weight: Pair, channels: int, *, transposed: bool = False) -> Shapes:
    return _conv(f"{name}.conv", *weight, 3, 3, transposed=transposed) | _bn(f"{name}.bn", channels)


def _non_bottlenecks(layers: str, indices: range, c: int) -> Shapes:
    shapes: Shapes = {}
    for index in indices:
        for pair in (1, 2):
            shapes |= _conv(f"{layers}.{index}.conv3x1_{pair}", c, c, 3, 1)
            shapes |= _conv(f"{layers}.{index}.conv1x3_{pair}", c, c, 1, 3)
            shapes |= _bn(f"{layers}.{index}.bn{pair}", c)
    return shapes


def published_shapes() -> Shapes:
    """Every entry of a published ERFNet LMANet checkpoint, in its order."""
    return (
        _down_or_up("encoder.initial_block", (13, 3), 16)
        | _down_or_up("encoder.layers.0", (48, 16), 64)
        | _non_bottlenecks("encoder.layers", range(1, 6), 64)
        | _down_or_up("encoder.layers.6", (64, 64), 128)
        | _non_bottlenecks("encoder.layers", range(7, 15), 128)
        | _conv("kv_M_r4.Key", 16, 128, 3, 3)
        | _conv("kv_M_r4.Value", VALUE_CHANNELS, 128, 3, 3)
        | _conv("kv_Q_r4.Key", 16, 128, 3, 3)
        | _conv("kv_Q_r4.Value", VALUE_CHANNELS, 128, 3, 3)
        | _bn("memory_fusion.bn1", 64)
        | _bn("memory_fusion.bn2", 64)
        | _conv("memory_fusion.conv_layer_1", 128, 64, 3, 3)
        | _conv("memory_fusion.conv_layer_2", 128, 64, 3, 3)
        | _conv("memory_fusion.conv_layer_3", 128, 128, 3, 3)
        | _conv("memory_fusion.conv_layer_4", 128, 128, 3, 3)
        | _bn("memory_fusion.bn", 128)
        | _down_or_up("decoder.layers.0", (128, 64), 64, transposed=True)
        | _non_bottlenecks("decoder.layers", range(1, 3), 64)
        | _down_or_up("decoder.layers.3", (64, 16), 16, transposed=True)
        | _non_bottlenecks("decoder.layers", range(4, 6), 16)
        | _conv("decoder.output_conv", 16, NUM_CHANNELS, 2, 2, transposed=True)
    )


def random_weights(seed: int) -> dict[str, FloatArray]:
    """Weights exact in float32, with batch norms far from the identity, so each one matters."""
    rng = np.random.default_rng(seed)
    weights: dict[str, FloatArray] = {}
    for name, shape in published_shapes().items():
        if name.endswith("num_batches_tracked"):
            drawn = np.array(float(rng.integers(1, 1_000_000)))
        elif name.endswith("running_var"):
            drawn = rng.uniform(0.5, 2.0, shape)
        elif name.endswith("running_mean"):
            drawn = rng.normal(0.0, 0.3, shape)
        elif name.endswith("bias"):
            drawn = rng.normal(0.0, 0.2, shape)
        elif len(shape) == 1:
            drawn = rng.uniform(0.4, 1.2, shape) * rng.choice([-1.0, 1.0], shape, p=[0.2, 0.8])
        else:
            # Small keys keep the softmax over the window from picking a single neighbour.
            gain = 0.1 if ".Key." in name else 1.5
            fan_in = np.prod(shape) / max(shape[:2])
            drawn = rng.normal(0.0, np.sqrt(gain / fan_in), shape)
        weights[name] = drawn.astype(np.float32).astype(np.float64)
    return weights
