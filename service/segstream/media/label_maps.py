"""Label maps: one class per pixel, packed for the wire and back."""

import hashlib
import io
import json
import zlib
from enum import StrEnum
from functools import lru_cache

import cv2
import numpy as np
import PIL.Image
import zstandard
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from segstream.errors import InvalidInputError
from segstream.label_sets import IGNORE_INDEX, LabelSet
from segstream.media.coco_rle import decode_coco_rle, encode_coco_rle
from segstream.media.decoding import refusing_unreadable
from segstream.media.runs import pack_runs, unpack_runs

LabelMap = NDArray[np.uint8]
"""Train ids, (height, width); IGNORE_INDEX where there is no class."""

_FIELD = "label_map.data"
_ZSTD_LEVEL = 1
_DIGEST_BYTES = 16


class LabelMapEncoding(StrEnum):
    """How the pixels of a label map are packed."""

    PNG = "png"
    ZSTD = "zstd"
    RAW = "raw"
    COCO_RLE = "coco_rle"
    DELTA = "delta"
    OVERLAY_JPEG = "overlay_jpeg"

    @property
    def holds_ids(self) -> bool:
        """Whether the pixels can be had back; an overlay is but a picture of them."""
        return self is not LabelMapEncoding.OVERLAY_JPEG


class IdSpace(StrEnum):
    """What the numbers of a label map stand for: the label set's order or the data set's ids."""

    TRAIN_ID = "train_id"
    LABEL_ID = "label_id"


def encode_label_map(
    label_map: LabelMap, encoding: LabelMapEncoding, id_space: IdSpace, label_set: LabelSet
) -> bytes:
    """Pack (H, W) train ids as ``id_space`` numbers; PNG shows the colours of the label set.

    DELTA stands for itself here, the change since a label map of zeros. Raises InvalidInputError
    for an encoding that holds no ids.
    """
    ids = in_id_space(label_map, id_space, label_set)
    match encoding:
        case LabelMapEncoding.PNG:
            return _encode_png(ids, colour_table(label_set, id_space))
        case LabelMapEncoding.ZSTD:
            return zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(ids.data)
        case LabelMapEncoding.RAW:
            return ids.tobytes()
        case LabelMapEncoding.COCO_RLE:
            return _encode_coco_rle(ids)
        case LabelMapEncoding.DELTA:
            return pack_runs(ids)
        case LabelMapEncoding.OVERLAY_JPEG:
            raise _without_ids(encoding)


def encode_delta(ids: NDArray[np.uint8], base: NDArray[np.uint8]) -> bytes:
    """Pack the change of (H, W) ids since ``base``, ids of the same size and id space."""
    return pack_runs(np.bitwise_xor(ids, base))


def decode_label_map(
    data: bytes,
    encoding: LabelMapEncoding,
    width: int,
    height: int,
    *,
    base: NDArray[np.uint8] | None = None,
) -> LabelMap:
    """Unpack (height, width) ids, in the id space they were packed in; else InvalidInputError.

    ``base``: the ids, of the same size, that a DELTA tells the change of; None = it is whole.
    """
    match encoding:
        case LabelMapEncoding.PNG:
            return _decode_png(data, width, height)
        case LabelMapEncoding.ZSTD:
            return _decode_raw(_decompress(data, width * height), width, height)
        case LabelMapEncoding.RAW:
            return _decode_raw(data, width, height)
        case LabelMapEncoding.COCO_RLE:
            return _decode_coco_rle(data, width, height)
        case LabelMapEncoding.DELTA:
            return _decode_delta(data, width, height, base)
        case LabelMapEncoding.OVERLAY_JPEG:
            raise _without_ids(encoding)


def in_id_space(label_map: LabelMap, id_space: IdSpace, label_set: LabelSet) -> NDArray[np.uint8]:
    """(H, W) train ids as numbers of ``id_space``, row by row in memory."""
    ids = np.ascontiguousarray(label_map)
    return to_label_ids(ids, label_set) if id_space is IdSpace.LABEL_ID else ids


def to_label_ids(label_map: LabelMap, label_set: LabelSet) -> NDArray[np.uint8]:
    """(H, W) train ids to the data set's own; IGNORE_INDEX stays."""
    return _as_ids(cv2.LUT(label_map, _label_ids(label_set)))


def label_map_digest(label_map: LabelMap) -> bytes:
    """BLAKE2b-128 of the train ids, row by row, one byte per pixel."""
    return hashlib.blake2b(np.ascontiguousarray(label_map).data, digest_size=_DIGEST_BYTES).digest()


def resize_label_map(label_map: LabelMap, width: int, height: int) -> LabelMap:
    """Bring to (height, width), each pixel taking the class of its nearest."""
    if label_map.shape == (height, width):
        return label_map
    return _as_ids(cv2.resize(label_map, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


@lru_cache
def colour_table(label_set: LabelSet, id_space: IdSpace = IdSpace.TRAIN_ID) -> NDArray[np.uint8]:
    """RGB colours by id, (256, 3), read-only; ids without a class are black."""
    table = np.zeros((256, 3), np.uint8)
    for train_id, label in enumerate(label_set.labels):
        table[train_id if id_space is IdSpace.TRAIN_ID else label.label_id] = label.colour
    table.setflags(write=False)
    return table


@lru_cache
def _label_ids(label_set: LabelSet) -> NDArray[np.uint8]:
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: label_set.num_classes] = [label.label_id for label in label_set.labels]
    return table


def _encode_png(ids: NDArray[np.uint8], colours: NDArray[np.uint8]) -> bytes:
    picture = PIL.Image.fromarray(ids)
    picture.putpalette(colours.tobytes())
    target = io.BytesIO()
    # Runs of equal ids: zlib's run-length strategy is as fast as level 1 and packs tighter.
    picture.save(target, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return target.getvalue()


def _decode_png(data: bytes, width: int, height: int) -> LabelMap:
    with refusing_unreadable(_FIELD, "PNG"):
        header = PngImageFile(io.BytesIO(data))
        if header.mode != "P":
            raise InvalidInputError(
                f"{_FIELD} is a PNG without a palette, of mode {header.mode}", field=_FIELD
            )
        if header.size != (width, height):
            stated = "x".join(map(str, header.size))
            raise InvalidInputError(
                f"{_FIELD} is {stated}, the label map {width}x{height}", field=_FIELD
            )
        header.verify()
        return np.array(PngImageFile(io.BytesIO(data)))


def _encode_coco_rle(ids: NDArray[np.uint8]) -> bytes:
    columns = np.asfortranarray(ids)
    classes = [
        {"category_id": number, "segmentation": encode_coco_rle(np.equal(columns, number))}
        for number in np.unique(ids).tolist()
        if number != IGNORE_INDEX
    ]
    return json.dumps(classes, separators=(",", ":")).encode()


def _decode_coco_rle(data: bytes, width: int, height: int) -> LabelMap:
    ids = np.full((height, width), IGNORE_INDEX, np.uint8)
    with refusing_unreadable(_FIELD, "COCO RLE"):
        classes = json.loads(data)
        if not isinstance(classes, list):
            raise InvalidInputError(f"{_FIELD} is no list of classes", field=_FIELD)
        for item in classes:
            number, rle = item["category_id"], item["segmentation"]
            if not 0 <= number < IGNORE_INDEX:
                raise InvalidInputError(
                    f"{_FIELD} has category_id {number}; it must be from 0 to {IGNORE_INDEX - 1}",
                    field=_FIELD,
                )
            if rle["size"] != [height, width]:
                raise InvalidInputError(
                    f"{_FIELD} has a mask of size {rle['size']}; the label map has "
                    f"{[height, width]}",
                    field=_FIELD,
                )
            ids[decode_coco_rle(rle, _FIELD)] = number
    return ids


def _decode_delta(data: bytes, width: int, height: int, base: NDArray[np.uint8] | None) -> LabelMap:
    ids = unpack_runs(data, width, height, _FIELD)
    if base is None:
        return ids
    if base.shape != ids.shape:
        raise InvalidInputError(
            f"{_FIELD} is {width}x{height}, but is the change of a label map of "
            f"{base.shape[1]}x{base.shape[0]}",
            field=_FIELD,
        )
    return np.bitwise_xor(ids, base, out=ids)


def _without_ids(encoding: LabelMapEncoding) -> InvalidInputError:
    return InvalidInputError(f"{encoding} holds no ids", field="label_map_encoding")


def _decompress(data: bytes, num_bytes: int) -> bytes:
    with refusing_unreadable(_FIELD, "zstd"):
        # The size that a frame states of itself would be allocated unseen.
        stated = zstandard.frame_content_size(data)
        if stated not in (num_bytes, -1):
            raise InvalidInputError(
                f"{_FIELD} holds {stated} bytes; the label map has {num_bytes}", field=_FIELD
            )
        return zstandard.ZstdDecompressor().decompress(
            data, max_output_size=num_bytes, allow_extra_data=False
        )


def _decode_raw(data: bytes, width: int, height: int) -> LabelMap:
    if len(data) != width * height:
        raise InvalidInputError(
            f"{_FIELD} has {len(data)} bytes; {width}x{height} has {width * height}", field=_FIELD
        )
    return np.frombuffer(data, np.uint8).reshape(height, width).copy()


def _as_ids(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.asarray(array, np.uint8)
