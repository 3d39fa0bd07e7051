import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import zstandard

from segstream.clips.chunks import ChunkStore, ChunkWriter
from segstream.clips.library import ClipLibrary
from segstream.clips.records import ClipFacts, new_clip_id
from segstream.label_sets import CAMVID
from segstream.media.video import VideoReader
from tests.support.models import make_video

FACTS = ClipFacts(width=32, height=24, frames_per_second=Fraction(10), num_frames=None)
IMAGES = make_video(5, 24, 32)
LABEL_MAPS = [np.full((24, 32), index, np.uint8) for index in range(5)]


def written(writer: ChunkWriter, start: int, end: int) -> bytes:
    for image, label_map in zip(IMAGES[start:end], LABEL_MAPS[start:end], strict=True):
        writer.add(image, label_map, {"total": 0.1})
    assert writer.num_frames == end - start
    return writer.pack()


def test_chunks_come_back_in_order(library: ClipLibrary, tmp_path: Path) -> None:
    chunks = ChunkStore(library, new_clip_id())
    writer = ChunkWriter(FACTS, CAMVID, opacity=0.5)
    assert chunks.num_frames() == 0
    assert chunks.add(0, written(writer, 0, 3))
    assert chunks.add(3, written(writer, 3, 5))
    writer.close()
    assert chunks.num_frames() == 5
    stored = list(chunks)
    assert [(chunk.first_frame, chunk.end_frame) for chunk in stored] == [(0, 3), (3, 5)]
    packed = io.BytesIO(b"".join(chunk.label_maps for chunk in stored))
    reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    assert reader.read() == b"".join(label_map.tobytes() for label_map in LABEL_MAPS)
    consistent = [frame.consistency for chunk in stored for frame in chunk.figures]
    assert consistent[0] is None
    path = tmp_path / "overlay.mp4"
    path.write_bytes(stored[1].overlay)
    with VideoReader(path) as video:
        assert len(list(video)) == 2
    chunks.remove()
    assert chunks.num_frames() == 0


def test_of_two_workers_at_the_same_frame_one_loses(library: ClipLibrary) -> None:
    chunks = ChunkStore(library, new_clip_id())
    assert chunks.add(0, written(ChunkWriter(FACTS, CAMVID, opacity=0.5), 0, 3))
    assert not chunks.add(0, written(ChunkWriter(FACTS, CAMVID, opacity=0.5), 0, 2))
    assert chunks.num_frames() == 3
