"""What a finished clip leaves: an overlay video, label maps and a report."""

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import zstandard

from segstream.clips.chunks import ChunkStore
from segstream.clips.figures import FrameFigures
from segstream.clips.library import ClipLibrary
from segstream.clips.records import Clip, ClipFacts, ClipState, Submission
from segstream.clips.report import ClipReport, make_report
from segstream.engine import ModelInfo
from segstream.errors import WrongStateError
from segstream.label_sets import LABEL_SETS, LabelSet
from segstream.media.label_maps import LabelMap
from segstream.media.video_encoder import join_videos

_FOLDER: Final = "results"
_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class LabelMaps:
    """The label maps of a clip, one after the other: train ids, (height, width)."""

    source: IO[bytes]
    report: ClipReport

    @property
    def label_set(self) -> LabelSet:
        return LABEL_SETS[self.report.label_set]

    def __iter__(self) -> Iterator[LabelMap]:
        width, height = self.report.width, self.report.height
        decompressor = zstandard.ZstdDecompressor()
        with (
            self.source,
            decompressor.stream_reader(self.source, read_across_frames=True) as reader,
        ):
            for _ in range(self.report.num_frames):
                data = reader.read(width * height)
                yield np.frombuffer(data, np.uint8).reshape(height, width)


class ClipResults:
    """The results of one clip. Every method blocks: call it from a thread."""

    def __init__(self, library: ClipLibrary, submission: Submission) -> None:
        self._library = library
        self._submission = submission

    @classmethod
    def of(cls, library: ClipLibrary, clip: Clip) -> "ClipResults":
        """Of a clip that is done; WrongStateError for any other."""
        if clip.state is not ClipState.DONE:
            why = f": {clip.outcome.error}" if clip.outcome and clip.outcome.error else ""
            raise WrongStateError(
                f"clip_id {clip.id} is {clip.state.value}{why}; only clips that are done "
                "have results",
                field="clip_id",
                retry_after_seconds=None if clip.is_over else _RETRY_SECONDS,
            )
        return cls(library, clip.submission)

    def assemble(
        self, chunks: ChunkStore, facts: ClipFacts, model: ModelInfo, num_attempts: int
    ) -> None:
        """Make the results of all chunks, which are read one after the other."""
        figures: list[FrameFigures] = []

        def parts(label_maps: IO[bytes]) -> Iterator[IO[bytes]]:
            for chunk in chunks:
                figures.extend(chunk.figures)
                label_maps.write(chunk.label_maps)
                yield io.BytesIO(chunk.overlay)

        storage = self._library.storage
        with tempfile.TemporaryDirectory(prefix="segstream-clip-") as folder:
            overlay, label_maps = Path(folder, "overlay.mp4"), Path(folder, "label_maps.zst")
            with label_maps.open("wb") as file:
                join_videos(parts(file), overlay, facts.frames_per_second)
            for path in (overlay, label_maps):
                storage.put_file(path, self.path(path.name))
        report = make_report(self._submission, facts, model, figures, num_attempts)
        storage.replace(self.path("report.json"), report.model_dump_json().encode())

    def path(self, name: str) -> str:
        """In the storage."""
        return self._library.path(self._submission.id, _FOLDER, name)

    def report(self) -> ClipReport:
        """The report."""
        return ClipReport.model_validate_json(self._library.storage.read(self.path("report.json")))

    def label_maps(self) -> LabelMaps:
        """The label maps, to be read once."""
        source = self._library.storage.open(self.path("label_maps.zst"))
        return LabelMaps(source, self.report())
