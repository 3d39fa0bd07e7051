"""The network in C++: against torch on trained weights, and what it keeps between frames."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from segstream.attention import cpu
from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, NativeLMANet, load
from segstream.models.native.library import best_isa
from segstream.models.native.plan import num_floats
from segstream.models.stream import LMANetStream
from segstream.pages import Pages, empty_pages
from segstream.shared_library import Isa

pytestmark = pytest.mark.skipif(best_isa() is None, reason="the kernel was not built")

CLIP = Path(__file__).parents[4] / "shared" / "clips" / "camvid_val_480x360_15fps.mp4"
NUM_FRAMES = 8


@pytest.fixture(scope="module")
def trained() -> LMANet:
    return load("lmanet-erfnet-camvid")


def coarse_frames(batch: int, height: int, width: int) -> Tensor:
    """Blocks of random colours, as a street has areas."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(batch, 3, -(-height // 12), -(-width // 12), generator=generator)
    whole = blocks.repeat_interleave(12, dim=2).repeat_interleave(12, dim=3)
    return whole[..., :height, :width].contiguous()


def test_labels_a_drive_as_the_other_runtimes_do(trained: LMANet) -> None:
    if not CLIP.exists():
        pytest.skip(f"no {CLIP.name}: the drive is not at hand")
    native, onnx, plain = (
        trained.stream(runtime="native"),
        trained.stream(runtime="onnx"),
        trained.stream(runtime="torch"),
    )
    with av.open(str(CLIP)) as video:
        for _, image in zip(range(NUM_FRAMES), video.decode(video=0), strict=False):
            rgb = torch.from_numpy(image.to_ndarray(format="rgb24"))
            frame = rgb.permute(2, 0, 1)[None].float() / 255
            classes = [
                stream.step(frame)[:, : CAMVID.num_classes].argmax(dim=1)
                for stream in (native, onnx, plain)
            ]
            for other in classes[1:]:
                assert (classes[0] == other).double().mean() >= 0.999


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 70), (129, 17)])
@pytest.mark.parametrize("has_sink", [False, True])
def test_agrees_with_torch_on_frames_of_any_size(size: tuple[int, int], has_sink: bool) -> None:
    torch.manual_seed(0)
    config = LMANetConfig(CAMVID, 13, memory_length=2, window_size=5, has_sink=has_sink)
    network = LMANet(config).eval().requires_grad_(False)
    if network.sink is not None:
        network.sink.fill_(0.7)
    native, plain = network.stream(runtime="native"), network.stream(runtime="torch")
    for frame in coarse_frames(6, *size).split(2):
        found, wanted = native.step(frame), plain.step(frame)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_residual_fusion_is_the_same_on_every_runtime() -> None:
    torch.manual_seed(0)
    config = LMANetConfig(CAMVID, 12, memory_length=2, window_size=5, fusion="residual-do1")
    network = LMANet(config).eval().requires_grad_(False)
    plain = network.stream(runtime="torch")
    others = [network.stream(runtime=runtime) for runtime in ("native", "onnx", "auto")]
    published = LMANet(replace(config, fusion="sigmoid-do1")).eval().requires_grad_(False)
    published.load_state_dict(network.state_dict())
    without = published.stream(runtime="torch")
    for number, frame in enumerate(coarse_frames(6, 50, 67).split(2)):
        wanted = plain.step(frame)
        for stream in others:
            torch.testing.assert_close(stream.step(frame), wanted, rtol=1e-4, atol=1e-4)
        assert torch.allclose(without.step(frame), wanted, atol=1e-3) == (number == 0)


def test_image_and_float_frame_give_the_same_labels(trained: LMANet) -> None:
    network = NativeLMANet(trained)
    image = (coarse_frames(1, 50, 67)[0].permute(1, 2, 0) * 255).to(torch.uint8).contiguous()
    pages = empty_pages(network.page_geometry(50, 67), 1)
    slots, written = torch.empty(1, 0, dtype=torch.int32), torch.tensor([0])
    frame = (image.float() / 255).permute(2, 0, 1)[None]
    logits = network(frame, pages, slots, written)[0, : CAMVID.num_classes]
    [label_map] = network.label_maps([0], [image.numpy()], pages, slots, written, lambda _: None)
    assert np.array_equal(label_map, logits.argmax(dim=0).numpy())
    assert np.array_equal(network.segment_single(image.numpy()).numpy(), label_map)


def test_instruction_sets_that_fuse_agree_to_the_bit(trained: LMANet) -> None:
    best = best_isa()
    isas = [isa for isa in (Isa.X86_64_V3, Isa.X86_64_V4) if best is not None and isa <= best]
    frames = coarse_frames(3, 70, 90).split(1)
    outs = []
    for isa in isas:
        stream = LMANetStream(NativeLMANet(trained, isa=isa))
        outs.append([stream.step(frame) for frame in frames])
    assert all(torch.equal(*pair) for out in outs for pair in zip(out, outs[0], strict=True))


def test_a_large_frame_between_small_ones_changes_nothing(trained: LMANet) -> None:
    network = NativeLMANet(trained)
    small, large = coarse_frames(1, 24, 40), coarse_frames(1, 130, 170)
    streams = LMANetStream(network), LMANetStream(network)
    first = streams[0].step(small)
    streams[1].step(large)
    streams[0].reset()
    assert torch.equal(streams[0].step(small), first)


def test_its_memory_is_that_of_the_largest_frame(trained: LMANet) -> None:
    network = NativeLMANet(trained)
    for height in range(8, 200, 8):
        LMANetStream(network).step(coarse_frames(1, height, 64))
    assert len(network._memory) == num_floats(192, 64)
    assert len(network._plans) <= 16


def test_pages_that_are_not_dense_are_written_alike(trained: LMANet) -> None:
    network = NativeLMANet(trained)
    frame = coarse_frames(1, 40, 56)
    dense = empty_pages(network.page_geometry(40, 56), 1)
    sparse = Pages(torch.empty(1, 5, 7, 32)[..., ::2], torch.empty(1, 5, 7, 128)[..., ::2])
    for pages in (dense, sparse):
        network(frame, pages, torch.empty(1, 0, dtype=torch.int32), torch.tensor([0]))
    assert torch.equal(dense.keys, sparse.keys)
    assert torch.equal(dense.values, sparse.values)


def test_refuses_what_it_cannot_run() -> None:
    config = LMANetConfig(CAMVID, 12, memory_length=1, window_size=1)
    with pytest.raises(InvalidInputError, match="runtime 'native' takes float32 weights"):
        LMANet(config).eval().double().stream(runtime="native")
    with pytest.raises(InvalidInputError, match="in training mode"):
        LMANet(config).stream(runtime="native")


def test_the_attention_has_a_kernel_where_the_network_has() -> None:
    assert cpu.best_isa() == best_isa()
