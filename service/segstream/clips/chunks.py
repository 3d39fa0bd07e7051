"""Chunks: what is finished of a clip, stored piece by piece, each piece once.

A chunk is a zip of ``figures.json``, ``label_maps.zst`` and ``overlay.mp4`` for consecutive
frames. Its name is the index of its first frame, and it is created, never replaced: of two workers
that come to the same frame, one finds that it has lost the job.
"""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from pydantic import TypeAdapter

from segstream.clips.figures import ConsistencyMeter, FrameFigures, count_pixels
from segstream.clips.library import ClipLibrary
from segstream.clips.records import ClipFacts
from segstream.label_sets import LabelSet
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.media.overlay import draw_overlay
from segstream.media.video_encoder import VideoEncoder

_FOLDER: Final = "chunks"
_ZSTD_LEVEL = 3
_FIGURES = TypeAdapter(list[FrameFigures])


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stored chunk. ``label_maps``: zstd of the train ids, frame by frame."""

    first_frame: int
    figures: list[FrameFigures]
    label_maps: bytes
    overlay: bytes

    @property
    def end_frame(self) -> int:
        return self.first_frame + len(self.figures)


class ChunkWriter:
    """Collects consecutive frames, packed as they come: no raw pixels pile up."""

    def __init__(self, facts: ClipFacts, label_set: LabelSet, *, opacity: float) -> None:
        self._facts = facts
        self._label_set = label_set
        self._opacity = opacity
        self._meter = ConsistencyMeter()
        self._begin()

    def _begin(self) -> None:
        self._figures: list[FrameFigures] = []
        self._zstd = zstandard.ZstdCompressor(_ZSTD_LEVEL).compressobj()
        self._label_maps = bytearray()
        self._overlay = io.BytesIO()
        facts = self._facts
        self._encoder = VideoEncoder(
            self._overlay, facts.width, facts.height, facts.frames_per_second, is_part=True
        )

    @property
    def num_frames(self) -> int:
        return len(self._figures)

    def add(self, image: Image, label_map: LabelMap, stage_seconds: dict[str, float]) -> None:
        """The next frame, RGB (H, W, 3), and its train ids (H, W)."""
        overlay = draw_overlay(image, label_map, self._label_set, opacity=self._opacity)
        self._encoder.write(overlay)
        self._label_maps += self._zstd.compress(np.ascontiguousarray(label_map).data)
        self._figures.append(
            FrameFigures(
                num_pixels=count_pixels(label_map, self._label_set.num_classes),
                stage_seconds=stage_seconds,
                consistency=self._meter.measure(image, label_map),
            )
        )

    def pack(self) -> bytes:
        """The chunk of the frames so far, at least one; the next frame begins another."""
        self._encoder.finish()
        self._label_maps += self._zstd.flush()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("figures.json", _FIGURES.dump_json(self._figures))
            archive.writestr("label_maps.zst", bytes(self._label_maps))
            archive.writestr("overlay.mp4", self._overlay.getvalue())
        self._begin()
        return packed.getvalue()

    def close(self) -> None:
        """Let go of what was not packed."""
        self._encoder.close()


class ChunkStore:
    """The chunks of one clip."""

    def __init__(self, library: ClipLibrary, clip_id: str) -> None:
        self._library = library
        self._clip_id = clip_id

    def add(self, first_frame: int, packed: bytes) -> bool:
        """Store a chunk; False if one of this first frame is stored already."""
        path = self._library.path(self._clip_id, _FOLDER, f"{first_frame:08d}.zip")
        return self._library.storage.create(path, packed)

    def num_frames(self) -> int:
        """Frames in all chunks: where the job goes on."""
        names = self._names()
        return self._read(names[-1]).end_frame if names else 0

    def __iter__(self) -> Iterator[Chunk]:
        """In order, one at a time in memory."""
        for name in self._names():
            yield self._read(name)

    def remove(self) -> None:
        """All of them."""
        self._library.remove_files(self._clip_id, _FOLDER)

    def _names(self) -> list[str]:
        return self._library.storage.names(self._library.path(self._clip_id, _FOLDER))

    def _read(self, name: str) -> Chunk:
        data = self._library.storage.read(self._library.path(self._clip_id, _FOLDER, name))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return Chunk(
                first_frame=int(name.removesuffix(".zip")),
                figures=_FIGURES.validate_json(archive.read("figures.json")),
                label_maps=archive.read("label_maps.zst"),
                overlay=archive.read("overlay.mp4"),
            )
