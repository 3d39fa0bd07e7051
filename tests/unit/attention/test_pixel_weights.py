import pytest
import torch

from segstream.attention import local_memory_attention
from segstream.attention.pixel_weights import pixel_weights

T, HEIGHT, WIDTH, KEY_CHANNELS, VALUE_CHANNELS = 3, 5, 6, 4, 8
WINDOW_SIZE = 5


@pytest.mark.parametrize("sink", [None, torch.tensor([0.7])])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 3), (4, 5)])
def test_weights_are_those_of_the_operator(row: int, column: int, sink: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    query, keys = normal(1, HEIGHT, WIDTH, KEY_CHANNELS), normal(T, HEIGHT, WIDTH, KEY_CHANNELS)
    values = normal(T, HEIGHT, WIDTH, VALUE_CHANNELS)
    slots = torch.arange(T, dtype=torch.int32)[None]
    readout = local_memory_attention(query, keys, values, slots, WINDOW_SIZE, sink=sink)
    weights, outside = pixel_weights(query[0, row, column], keys, row, column, WINDOW_SIZE, sink)
    expected = torch.einsum("thw,thwd->d", weights, values)
    assert torch.allclose(readout[0, row, column], expected, atol=1e-5)
    total = float(weights.sum()) + outside
    assert total < 1 - 1e-4 if sink is not None else total == pytest.approx(1, abs=1e-5)
