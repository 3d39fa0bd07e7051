"""All label maps of a clip as one file, made frame by frame while it is sent."""

import io
import json
import zipfile
from collections.abc import Iterator
from enum import StrEnum
from typing import IO, Any

import numpy as np
import zstandard
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0
from numpy.typing import NDArray

from segstream.clips.results import LabelMaps
from segstream.label_sets import LabelSet
from segstream.media.coco_rle import encode_coco_rle
from segstream.media.images import ImageEncoding, encode_image
from segstream.media.label_maps import (
    IdSpace,
    LabelMap,
    LabelMapEncoding,
    encode_label_map,
    to_label_ids,
)
from segstream.media.overlay import colour_label_map

_ZSTD_LEVEL = 3


class LabelMapFormat(StrEnum):
    """``png_zip``: a PNG for each frame; ``coco_rle``: a line of JSON for each frame, with a mask
    for each class seen; ``npy_zst``: one numpy array of all frames, compressed with zstd.
    """

    PNG_ZIP = "png_zip"
    COCO_RLE = "coco_rle"
    NPY_ZST = "npy_zst"


class Ids(StrEnum):
    """What stands for a class: its place in the label set, the data set's id, or its colour."""

    TRAIN_ID = "train_id"
    LABEL_ID = "label_id"
    COLOUR = "colour"


MEDIA_TYPES = {
    LabelMapFormat.PNG_ZIP: "application/zip",
    LabelMapFormat.COCO_RLE: "application/x-ndjson",
    LabelMapFormat.NPY_ZST: "application/zstd",
}
SUFFIXES = {
    LabelMapFormat.PNG_ZIP: ".zip",
    LabelMapFormat.COCO_RLE: ".ndjson",
    LabelMapFormat.NPY_ZST: ".npy.zst",
}


def export_label_maps(
    label_maps: LabelMaps, file_format: LabelMapFormat, ids: Ids
) -> Iterator[bytes]:
    """The file, piece by piece."""
    match file_format:
        case LabelMapFormat.PNG_ZIP:
            return _png_zip(label_maps, ids)
        case LabelMapFormat.COCO_RLE:
            return _coco_rle(label_maps, ids)
        case LabelMapFormat.NPY_ZST:
            return _npy_zst(label_maps, ids)


class _Outlet(io.RawIOBase):
    """What a writer writes, to be taken piece by piece."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces += data
        return len(data)

    def take(self) -> bytes:
        piece, self._pieces = bytes(self._pieces), bytearray()
        return piece


def _png_zip(label_maps: LabelMaps, ids: Ids) -> Iterator[bytes]:
    outlet = _Outlet()
    # PNGs are packed already.
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
        for index, label_map in enumerate(label_maps):
            archive.writestr(f"{index:06d}.png", _png(label_map, ids, label_maps.label_set))
            yield outlet.take()
    yield outlet.take()


def _png(label_map: LabelMap, ids: Ids, label_set: LabelSet) -> bytes:
    if ids is Ids.COLOUR:
        return encode_image(colour_label_map(label_map, label_set), ImageEncoding.PNG)
    return encode_label_map(label_map, LabelMapEncoding.PNG, IdSpace(ids.value), label_set)


def _coco_rle(label_maps: LabelMaps, ids: Ids) -> Iterator[bytes]:
    rate = label_maps.report.frames_per_second
    for index, label_map in enumerate(label_maps):
        line = {
            "frame": index,
            "seconds": round(index / rate, 6),
            "segments": list(_segments(label_map, ids, label_maps.label_set)),
        }
        yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _segments(label_map: LabelMap, ids: Ids, label_set: LabelSet) -> Iterator[dict[str, Any]]:
    for train_id in np.unique(label_map).tolist():
        if train_id >= label_set.num_classes:
            continue
        label = label_set.labels[train_id]
        id_of = {
            Ids.TRAIN_ID: train_id,
            Ids.LABEL_ID: label.label_id,
            Ids.COLOUR: "#{:02x}{:02x}{:02x}".format(*label.colour),
        }
        mask = np.equal(label_map, train_id)
        yield {
            ids.value: id_of[ids],
            "name": label.name,
            "area": int(np.count_nonzero(mask)),
            "segmentation": encode_coco_rle(mask),
        }


def _npy_zst(label_maps: LabelMaps, ids: Ids) -> Iterator[bytes]:
    report = label_maps.report
    shape: tuple[int, ...] = (report.num_frames, report.height, report.width)
    if ids is Ids.COLOUR:
        shape = (*shape, 3)
    header: IO[bytes] = io.BytesIO()
    facts = header_data_from_array_1_0(np.empty(0, np.uint8)) | {"shape": shape}
    write_array_header_1_0(header, facts)
    compressor = zstandard.ZstdCompressor(_ZSTD_LEVEL).compressobj()
    header.seek(0)
    yield compressor.compress(header.read())
    for label_map in label_maps:
        pixels = _pixels(label_map, ids, label_maps.label_set)
        if piece := compressor.compress(np.ascontiguousarray(pixels).data):
            yield piece
    yield compressor.flush()


def _pixels(label_map: LabelMap, ids: Ids, label_set: LabelSet) -> NDArray[np.uint8]:
    match ids:
        case Ids.TRAIN_ID:
            return label_map
        case Ids.LABEL_ID:
            return to_label_ids(label_map, label_set)
        case Ids.COLOUR:
            return colour_label_map(label_map, label_set)
