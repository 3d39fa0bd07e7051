"""LMANet in ONNX Runtime: on CPU faster than torch, and the same bits in any batch."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from segstream.attention import local_memory_attention
from segstream.models.confidence import confidence_of
from segstream.models.digest import model_digest
from segstream.models.memory import ResidualFusion, write_pages
from segstream.models.onnx_cache import exported
from segstream.pages import PageGeometry, Pages

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet


class OnnxLMANet:
    """A float32 ``LMANet`` on CPU, with the weights that it has now; called as it is.

    What it computes for a frame depends neither on the batch around the frame nor on the number of
    threads. ``digest`` is ``model_digest(model)``, where the caller has it.
    """

    def __init__(self, model: "LMANet", digest: str | None = None) -> None:
        self.config = model.config
        self.dtype = torch.float32
        self._model = model
        self._sink = None if model.sink is None else model.sink.detach()
        graphs = exported(model, digest or model_digest(model))
        self._encode = _session(graphs.encode)
        self._query = _session(graphs.query)
        self._fuse = _session(graphs.fuse)
        self._decode = _session(graphs.decode)

    def page_geometry(self, height: int, width: int) -> PageGeometry:
        """As ``LMANet.page_geometry``."""
        return self._model.page_geometry(height, width)

    def __call__(
        self, frames: Tensor, pages: Pages, read_slots: Tensor, write_slots: Tensor
    ) -> Tensor:
        """Logits, as ``LMANet.forward``."""
        wanted = range(len(frames))
        [logits] = self._run(["logits"], wanted, frames, pages, read_slots, write_slots)
        return torch.from_numpy(logits)

    def label_maps(
        self,
        wanted: Sequence[int],
        frames: Tensor,
        pages: Pages,
        read_slots: Tensor,
        write_slots: Tensor,
        lap: Callable[[str], None],
        confidences: Mapping[int, npt.NDArray[np.uint8]] = MappingProxyType({}),
    ) -> npt.NDArray[np.uint8]:
        """Label maps ``(len(wanted), H, W)``, the best classes of the logits.

        The frames whose index is not ``wanted`` are only memorised. confidences: arrays ``(H, W)``
        that take, for the frames of these indices, the softmax of each pixel's class, 255 = 1. All
        else as in ``LMANet.forward``.
        """
        names = ["label_map", "logits"] if confidences else ["label_map"]
        found = self._run(names, wanted, frames, pages, read_slots, write_slots, lap)
        for index, out in confidences.items():
            logits = found[1][wanted.index(index), : self.config.label_set.num_classes]
            np.copyto(out, confidence_of(torch.from_numpy(logits)))
            lap("fuse_decode")
        return found[0]

    @torch.inference_mode()
    def _run(
        self,
        outputs: Sequence[str],
        wanted: Sequence[int],
        frames: Tensor,
        pages: Pages,
        read_slots: Tensor,
        write_slots: Tensor,
        lap: Callable[[str], None] = lambda _: None,
    ) -> list[npt.NDArray[Any]]:
        height, width = frames.shape[-2:]
        padded = self._model.spec.pad(frames).contiguous()
        features, key, value = self._encode.run(None, {"frames": padded.numpy()})
        lap("encode")

        has_memory = (read_slots >= 0).any(dim=1)
        warm = [index for index in wanted if has_memory[index]]
        if warm:
            query_key, query_value = self._query.run(None, {"features": features[warm]})
            readout = local_memory_attention(
                torch.from_numpy(query_key),
                pages.keys,
                pages.values,
                read_slots[warm],
                self.config.window_size,
                sink=self._sink,
            )
        lap("memory_read")

        write_pages(pages, write_slots, torch.from_numpy(key), torch.from_numpy(value))
        if warm:
            inputs = {"query_value": query_value, "readout": readout.numpy()}
            if isinstance(self._model.fusion, ResidualFusion):
                inputs["features"] = features[warm]
            features[warm] = self._fuse.run(None, inputs)[0]
        decoded = [np.empty((0, height, width), np.uint8)] * len(outputs)
        if wanted:
            decoded = self._decode.run(outputs, {"features": features[wanted]})
        lap("fuse_decode")
        return [np.ascontiguousarray(output[..., :height, :width]) for output in decoded]


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Each graph has threads of its own: those that wait must leave the cores to the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
