"""Streaming with a private memory: the research-side view of what the service computes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segstream.pages import Pages, empty_pages

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet
    from segstream.models.native_lmanet import NativeLMANet
    from segstream.models.onnx_lmanet import OnnxLMANet


class LMANetStream:
    """Segments videos frame by frame, B of them side by side, and keeps their memories."""

    def __init__(self, model: "LMANet | NativeLMANet | OnnxLMANet") -> None:
        self._model = model
        self.reset()

    def reset(self) -> None:
        """Forget all frames; the next one may have another size."""
        self._frame_shape: torch.Size | None = None
        self._pages: Pages | None = None
        self._num_frames = 0

    @torch.inference_mode()
    def step(self, frames: Tensor) -> Tensor:
        """The next frame of each video, ``(B, 3, H, W)`` floats in 0..1, to its logits.

        Returns ``(B, num_channels, H, W)``. Raises ValueError when B, H or W differ from the
        frame before.
        """
        self._check(frames)
        pages = self._allocate(frames) if self._pages is None else self._pages
        read_slots, write_slots = self._slots(frames)
        logits: Tensor = self._model(frames, pages, read_slots, write_slots)
        self._pages, self._frame_shape = pages, frames.shape
        self._num_frames += 1
        return logits

    def _check(self, frames: Tensor) -> None:
        dtype = self._model.dtype
        if frames.dim() != 4 or frames.shape[1] != 3 or frames.dtype != dtype:
            raise ValueError(
                f"frames must be (B, 3, H, W) {dtype}, got {tuple(frames.shape)} {frames.dtype}"
            )
        if not frames.numel():
            raise ValueError(f"frames of shape {tuple(frames.shape)} hold no pixels")
        if self._frame_shape is not None and frames.shape != self._frame_shape:
            raise ValueError(
                f"frames of shape {tuple(frames.shape)} in a stream of "
                f"{tuple(self._frame_shape)}; reset() first"
            )

    def _allocate(self, frames: Tensor) -> Pages:
        batch, _, height, width = frames.shape
        geometry = self._model.page_geometry(height, width)
        num_slots = batch * (self._model.config.stream_length + 1)
        return empty_pages(geometry, num_slots, dtype=frames.dtype, device=frames.device)

    def _slots(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Each video owns T + 1 slots and walks round them; the free one takes the new frame."""
        ring = self._model.config.stream_length + 1
        first = torch.arange(frames.shape[0], dtype=torch.int32, device=frames.device) * ring
        depth = min(self._num_frames, ring - 1)
        ages = torch.arange(depth, 0, -1, dtype=torch.int32, device=frames.device)
        read = first[:, None] + (self._num_frames - ages) % ring
        return read, (first + self._num_frames % ring).long()
