"""A clip through the service: overlay video, label maps, contact sheet and figures."""

import re
import shutil
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from segstream.cli.output_files import check_writable, check_writable_folder
from segstream.client import (
    Client,
    Frame,
    FrameResult,
    IdSpace,
    ImageEncoding,
    LabelMapEncoding,
    Session,
    StageTimings,
    StreamKeywords,
)
from segstream.clips.figures import (
    ClassShare,
    Percentiles,
    class_shares,
    classes_seen,
    count_pixels,
    stage_percentiles,
)
from segstream.errors import InvalidInputError
from segstream.label_sets import LabelSet
from segstream.media.images import Image, encode_image, fit_height
from segstream.media.label_maps import LabelMap, encode_label_map
from segstream.media.overlay import Tile, contact_sheet, draw_overlay
from segstream.media.video import VideoReader, VideoWriter

NUM_TILES: Final = 9
STAGES: Final = tuple(
    field.name.removesuffix("_seconds")
    for field in fields(StageTimings)
    if field.name.endswith("_seconds")
)
ROUND_TRIP: Final = "round_trip"

_MAX_TILE_HEIGHT = 720
# Enough to keep the engine busy while a frame is on its way; more would only wait in its queue.
_MAX_IN_FLIGHT = 2
_LABEL_MAP_NAME = re.compile(r"\d{6,}\.png")

Progress = Callable[[int, int | None], None]
"""Called with the frames done and, where the clip tells, the frames to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipJob:
    """What to make of a clip. ``max_height`` and ``max_frames``: 0 for no bound.

    ``resume_timeout_seconds``: as in `StreamOptions`.
    """

    clip: Path
    output: Path
    labels: Path | None = None
    contact_sheet: Path | None = None
    model: str = ""
    frame_encoding: ImageEncoding = ImageEncoding.RAW_RGB
    max_height: int = 0
    max_frames: int = 0
    opacity: float = 0.55
    id_space: IdSpace = IdSpace.TRAIN_ID
    resume_timeout_seconds: float = 30.0

    def check(self) -> None:
        """Raise InvalidInputError if the clip cannot be read or an output cannot be written."""
        with VideoReader(self.clip):
            pass
        _check_file(self.output, self.clip, "output")
        if self.contact_sheet is not None:
            _check_file(self.contact_sheet, self.clip, "contact sheet")
            if self.contact_sheet.resolve() == self.output.resolve():
                raise InvalidInputError(
                    f"contact sheet {self.contact_sheet} is the output as well",
                    field="contact sheet",
                )
        if self.labels is not None:
            check_writable_folder(self.labels, "label folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was made of a clip. ``classes``: largest first; ``stages``: by name."""

    clip: str
    output: str
    labels: str | None
    contact_sheet: str | None
    model: str
    session_id: str
    memory_length: int
    width: int
    height: int
    num_frames: int
    elapsed_seconds: float
    frames_per_second: float
    classes: tuple[ClassShare, ...]
    stages: dict[str, Percentiles]


def segment_clip(
    client: Client, job: ClipJob, *, on_progress: Progress = lambda done, total: None
) -> Report:
    """Stream the clip through the service and write what the job asks for.

    Raises SegstreamError or OSError; results of an earlier run then stay as they were.
    """
    job.check()
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(job.clip))
        session = stack.enter_context(client.stream(**_stream_keywords(job)))
        label_set = session.ready.label_set
        sheet = _ContactSheet(job, label_set, reader.frames_per_second)
        folder = _LabelFolder(stack.enter_context(_new_label_maps(job.labels)), job, label_set)
        sheet_file = stack.enter_context(_new_file(job.contact_sheet))
        video = stack.enter_context(
            VideoWriter(job.output, reader.width, reader.height, reader.frames_per_second)
        )
        figures = _Figures(label_set)
        total = _num_frames_to_do(reader, job)
        for image, result in _results(reader, session, job):
            overlay = draw_overlay(image, result.label_map, label_set, opacity=job.opacity)
            video.write(overlay)
            folder.write(result.label_map)
            sheet.offer(overlay)
            figures.add(result)
            on_progress(figures.num_frames, total)
        sheet.write(sheet_file, figures.class_shares)
        return _report(job, reader, session, figures)


class TileSampler:
    """Keeps pictures spread evenly over a video whose length nobody knows beforehand."""

    def __init__(self, num_tiles: int) -> None:
        self._num_tiles = num_tiles
        self._stride = 1
        self._num_offered = 0
        self._kept: list[Tile] = []

    def offer(self, make_tile: Callable[[int], Tile]) -> None:
        """Take the next picture or leave it; ``make_tile`` gets its number if it is taken."""
        index = self._num_offered
        self._num_offered += 1
        if index % self._stride == 0:
            self._kept.append(make_tile(index))
        if len(self._kept) == 4 * self._num_tiles:
            self._kept = self._kept[::2]
            self._stride *= 2

    def tiles(self) -> list[Tile]:
        """At most ``num_tiles`` of them, first to last."""
        count = min(self._num_tiles, len(self._kept))
        places = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        return [self._kept[place] for place in places]


@contextmanager
def _new_label_maps(folder: Path | None) -> Iterator[Path | None]:
    """A temporary folder beside ``folder``, whose maps take its place if the block ends well."""
    if folder is None:
        yield None
        return
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", suffix=".part", ignore_cleanup_errors=True
    ) as part:
        yield Path(part)
        folder.mkdir(exist_ok=True)
        new = sorted(path.name for path in Path(part).iterdir())
        for name in new:
            shutil.move(Path(part, name), folder / name)
        old = {path.name for path in folder.iterdir() if _LABEL_MAP_NAME.fullmatch(path.name)}
        for name in old.difference(new):
            (folder / name).unlink()


@contextmanager
def _new_file(path: Path | None) -> Iterator[Path | None]:
    """A temporary file that becomes ``path`` if the block ends well."""
    if path is None:
        yield None
        return
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _ContactSheet:
    """The page of overlays, if one is asked for."""

    def __init__(self, job: ClipJob, label_set: LabelSet, frames_per_second: Fraction) -> None:
        self._is_wanted = job.contact_sheet is not None
        self._title = job.clip.name
        self._label_set = label_set
        self._frames_per_second = frames_per_second
        self._sampler = TileSampler(NUM_TILES)

    def offer(self, overlay: Image) -> None:
        if self._is_wanted:
            self._sampler.offer(lambda index: self._tile(index, overlay))

    def write(self, path: Path | None, class_shares: Sequence[float]) -> None:
        if path is not None:
            tiles = self._sampler.tiles()
            page = contact_sheet(tiles, self._label_set, class_shares, title=self._title)
            path.write_bytes(encode_image(page, ImageEncoding.PNG))

    def _tile(self, index: int, overlay: Image) -> Tile:
        minutes, seconds = divmod(float(index / self._frames_per_second), 60)
        caption = f"{int(minutes)}:{seconds:04.1f}  frame {index}"
        return Tile(caption, fit_height(overlay, _MAX_TILE_HEIGHT))


class _LabelFolder:
    """Label maps as ``000000.png`` and so on, if they are asked for."""

    def __init__(self, folder: Path | None, job: ClipJob, label_set: LabelSet) -> None:
        self._folder = folder
        self._id_space = job.id_space
        self._label_set = label_set
        self._num_written = 0

    def write(self, label_map: LabelMap) -> None:
        if self._folder is None:
            return
        png = encode_label_map(label_map, LabelMapEncoding.PNG, self._id_space, self._label_set)
        (self._folder / f"{self._num_written:06d}.png").write_bytes(png)
        self._num_written += 1


class _Figures:
    """Counts pixels and times while the clip runs."""

    def __init__(self, label_set: LabelSet) -> None:
        self._label_set = label_set
        self._num_pixels = np.zeros(label_set.num_classes + 1, np.int64)
        self._seconds: dict[str, list[float]] = {name: [] for name in (*STAGES, ROUND_TRIP)}
        self._started_at = time.perf_counter()
        self.num_frames = 0

    def add(self, result: FrameResult) -> None:
        self.num_frames += 1
        self._num_pixels += count_pixels(result.label_map, self._label_set.num_classes)
        for name in STAGES:
            self._seconds[name].append(getattr(result.timings, f"{name}_seconds"))
        self._seconds[ROUND_TRIP].append(result.round_trip_seconds)

    @property
    def elapsed_seconds(self) -> float:
        return time.perf_counter() - self._started_at

    @property
    def class_shares(self) -> list[float]:
        """Each class's part of all pixels, in train-id order."""
        return class_shares(self._num_pixels.tolist())

    def classes_seen(self) -> tuple[ClassShare, ...]:
        return classes_seen(self._num_pixels.tolist(), self._label_set)

    def stages(self) -> dict[str, Percentiles]:
        return stage_percentiles(self._seconds)


def _stream_keywords(job: ClipJob) -> StreamKeywords:
    return {
        "model": job.model,
        "frame_encoding": job.frame_encoding,
        "max_working_height": job.max_height,
        "resume_timeout_seconds": job.resume_timeout_seconds,
    }


def _results(
    reader: VideoReader, session: Session, job: ClipJob
) -> Iterator[tuple[Image, FrameResult]]:
    pending: deque[Image] = deque()

    def frames(images: Iterable[Image]) -> Iterator[Frame]:
        for index, image in enumerate(images):
            pending.append(image)
            yield Frame(image, round(1_000_000 * index / reader.frames_per_second))

    images = islice(reader, job.max_frames or None)
    for result in session.segment(frames(images), max_in_flight=_MAX_IN_FLIGHT):
        yield pending.popleft(), result


def _num_frames_to_do(reader: VideoReader, job: ClipJob) -> int | None:
    bounds = [bound for bound in (reader.num_frames, job.max_frames) if bound]
    return min(bounds, default=None)


def _report(job: ClipJob, reader: VideoReader, session: Session, figures: _Figures) -> Report:
    elapsed_seconds = figures.elapsed_seconds
    return Report(
        clip=str(job.clip),
        output=str(job.output),
        labels=None if job.labels is None else str(job.labels),
        contact_sheet=None if job.contact_sheet is None else str(job.contact_sheet),
        model=session.ready.model,
        session_id=session.ready.session_id,
        memory_length=session.ready.memory_length,
        width=reader.width,
        height=reader.height,
        num_frames=figures.num_frames,
        elapsed_seconds=elapsed_seconds,
        frames_per_second=figures.num_frames / elapsed_seconds,
        classes=figures.classes_seen(),
        stages=figures.stages(),
    )


def _check_file(path: Path, clip: Path, name: str) -> None:
    check_writable(path, name)
    if path.exists() and path.samefile(clip):
        raise InvalidInputError(f"{name} {path} is the clip itself", field=name)
