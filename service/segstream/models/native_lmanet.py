"""LMANet in this package's own C++: faster than ONNX Runtime, and as true to the bit."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segstream.attention import local_memory_attention
from segstream.models.erfnet import Down, ERFNetDecoder, ERFNetEncoder, NonBottleneck1D, Up
from segstream.models.memory import GatedFusion, ResidualFusion
from segstream.models.native import layers
from segstream.models.native.library import Kind, Layer, Scratch
from segstream.models.native.plan import Chain, Layers, Plan, num_floats
from segstream.pages import PageGeometry, Pages
from segstream.shared_library import Isa

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet

Confidences = Mapping[int, npt.NDArray[np.uint8]]

_MAX_PLANS = 16


class NativeLMANet:
    """A float32 ``LMANet`` on CPU, with the weights that it has now; called as it is.

    What it computes for a frame depends neither on the batch around the frame nor on the number of
    threads, which is torch's at the time of the call. Frames of a batch are computed one after the
    other, in memory that is kept and is as large as the largest frame so far needs.
    """

    def __init__(self, model: "LMANet", *, isa: Isa = Isa.BEST) -> None:
        """``isa`` asks for a weaker instruction set than the processor has."""
        self.config = model.config
        self.dtype = torch.float32
        self._model = model
        self._sink = None if model.sink is None else model.sink.detach()
        self._layers = _layers(model, isa)
        self._lock = threading.Lock()
        self._memory = torch.empty(0)
        self._scratch = Scratch()
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()

    def page_geometry(self, height: int, width: int) -> PageGeometry:
        """As ``LMANet.page_geometry``."""
        return self._model.page_geometry(height, width)

    @torch.inference_mode()
    def __call__(
        self, frames: Tensor, pages: Pages, read_slots: Tensor, write_slots: Tensor
    ) -> Tensor:
        """Logits, as ``LMANet.forward``."""
        height, width = frames.shape[-2:]
        logits = torch.empty(len(frames), self.config.num_channels, height, width)
        images = frames.permute(0, 2, 3, 1)
        self._run(images, pages, read_slots, write_slots, dict(enumerate(logits)))
        return logits

    @torch.inference_mode()
    def label_maps(
        self,
        wanted: Sequence[int],
        images: Sequence[npt.NDArray[np.uint8]],
        pages: Pages,
        read_slots: Tensor,
        write_slots: Tensor,
        lap: Callable[[str], None],
        confidences: Confidences = MappingProxyType({}),
    ) -> npt.NDArray[np.uint8]:
        """Label maps ``(len(wanted), H, W)`` uint8, the best classes of the logits.

        images: ``(H, W, 3)`` uint8, of one size. Those whose index is not ``wanted`` are only
        memorised. confidences: arrays ``(H, W)`` that take, for the images of these indices, the
        softmax of each pixel's class, 255 = 1. All else as in ``LMANet.forward``.
        """
        height, width, _ = images[0].shape
        label_maps = torch.empty(len(wanted), height, width, dtype=torch.uint8)
        outputs = dict(zip(wanted, label_maps, strict=True))
        self._run(images, pages, read_slots, write_slots, outputs, lap, confidences)
        return label_maps.numpy()

    @torch.inference_mode()
    def segment_single(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """The label map of an image ``(H, W, 3)`` uint8 by the single-frame network."""
        height, width, _ = image.shape
        label_map = torch.empty(height, width, dtype=torch.uint8)
        with self._lock:
            plan, num_threads = self._plan(height, width), torch.get_num_threads()
            plan.read_frame(image)
            plan.write_output(label_map, self.config.label_set.num_classes)
            self._scratch.run(plan.encode, num_threads)
            self._scratch.run(plan.decode, num_threads)
        return label_map

    def _run(
        self,
        images: Sequence[npt.NDArray[np.uint8]] | Tensor,
        pages: Pages,
        read_slots: Tensor,
        write_slots: Tensor,
        outputs: dict[int, Tensor],
        lap: Callable[[str], None] = lambda _: None,
        confidences: Confidences = MappingProxyType({}),
    ) -> None:
        height, width, _ = images[0].shape
        with self._lock:
            plan = self._plan(height, width)
            for index, slot in enumerate(write_slots.tolist()):
                plan.read_frame(images[index])
                if (out := outputs.get(index)) is not None:
                    is_map = out.dtype == torch.uint8
                    num_channels = self.config.label_set.num_classes if is_map else len(out)
                    plan.write_output(out, num_channels, confidences.get(index))
                self._run_frame(plan, pages, read_slots[[index]], slot, out is not None, lap)

    def _run_frame(
        self,
        plan: Plan,
        pages: Pages,
        read_slots: Tensor,
        write_slot: int,
        is_decoded: bool,
        lap: Callable[[str], None],
    ) -> None:
        num_threads = torch.get_num_threads()
        is_warm = is_decoded and bool((read_slots >= 0).any())
        key, value = pages.keys[write_slot], pages.values[write_slot]
        is_direct = key.dtype == value.dtype == torch.float32 and (
            key.is_contiguous() and value.is_contiguous()
        )
        plan.write_page(*((key, value) if is_direct else (plan.key, plan.value)))
        self._scratch.run(plan.encode, num_threads)
        self._scratch.run(plan.all_heads if is_warm else plan.memory_heads, num_threads)
        if not is_direct:
            key.copy_(plan.key)
            value.copy_(plan.value)
        lap("encode")

        if is_warm:
            readout = local_memory_attention(
                plan.query_key,
                pages.keys,
                pages.values,
                read_slots,
                self.config.window_size,
                sink=self._sink,
            )
            plan.read_memory(readout)
        lap("memory_read")

        if is_decoded:
            if is_warm:
                self._scratch.run(plan.fuse, num_threads)
            self._scratch.run(plan.decode_fused if is_warm else plan.decode, num_threads)
        lap("fuse_decode")

    def _plan(self, height: int, width: int) -> Plan:
        size = num_floats(height, width)
        if size > len(self._memory):
            self._plans.clear()
            self._memory = torch.empty(size)
        plan = self._plans.pop((height, width), None)
        if plan is None:
            plan = Plan(self._layers, height, width, self._memory)
        self._plans[height, width] = plan
        if len(self._plans) > _MAX_PLANS:
            self._plans.popitem(last=False)
        return plan


def _layers(model: "LMANet", isa: Isa) -> Layers:
    encoder, decoder, fusion = model.encoder, model.decoder, model.fusion
    assert isinstance(encoder, ERFNetEncoder)
    assert isinstance(decoder, ERFNetDecoder)
    assert isinstance(fusion, GatedFusion)
    return Layers(
        encoder=[layers.down(Kind.STEM, encoder.initial_block, isa), *_chain(encoder.layers, isa)],
        memory_heads=layers.memory_heads(model.memory_head, isa),
        all_heads=layers.all_heads(model.memory_head, model.query_head, fusion, isa),
        readout_norm=layers.readout_norm(fusion, isa),
        gates=layers.gates(fusion, isa),
        is_residual=isinstance(fusion, ResidualFusion),
        decoder=_chain(decoder.layers, isa),
        labels=layers.labels(decoder.output_conv, isa),
    )


def _chain(modules: torch.nn.Sequential, isa: Isa) -> Chain:
    chain: list[Layer | tuple[Layer, Layer]] = []
    for module in modules:
        if isinstance(module, NonBottleneck1D):
            chain.append(layers.block(module, isa))
        elif isinstance(module, Up):
            chain.append(layers.up(module, isa))
        else:
            assert isinstance(module, Down)
            chain.append(layers.down(Kind.DOWN, module, isa))
    return chain
