import hashlib
import io
import json
import zlib
from contextlib import suppress

import numpy as np
import PIL.Image
import pytest
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st

from segstream.errors import InvalidInputError
from segstream.label_sets import CITYSCAPES, IGNORE_INDEX, LABEL_SETS, LabelSet
from segstream.media.label_maps import (
    IdSpace,
    LabelMap,
    LabelMapEncoding,
    colour_table,
    decode_label_map,
    encode_delta,
    encode_label_map,
    in_id_space,
    label_map_digest,
    resize_label_map,
)

OF_IDS = [encoding for encoding in LabelMapEncoding if encoding.holds_ids]
ENCODINGS = st.sampled_from(OF_IDS)


def stripes(label_set: LabelSet = CITYSCAPES) -> LabelMap:
    ids = np.array([*range(label_set.num_classes), IGNORE_INDEX], np.uint8)
    return np.ascontiguousarray(np.tile(np.repeat(ids, 3), (7, 1)))


def expected_ids(label_map: LabelMap, id_space: IdSpace, label_set: LabelSet) -> LabelMap:
    if id_space is IdSpace.TRAIN_ID:
        return label_map
    ids = {index: label.label_id for index, label in enumerate(label_set.labels)}
    return np.vectorize(lambda train_id: ids.get(train_id, IGNORE_INDEX))(label_map)  # type: ignore[no-any-return]


@st.composite
def label_maps(draw: st.DrawFn, label_set: LabelSet) -> LabelMap:
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    ids = np.array([*range(label_set.num_classes), IGNORE_INDEX], np.uint8)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.choice(ids, (height, width))


@given(st.data(), st.sampled_from(list(LABEL_SETS.values())), ENCODINGS, st.sampled_from(IdSpace))
def test_every_encoding_keeps_every_id(
    data: st.DataObject, label_set: LabelSet, encoding: LabelMapEncoding, id_space: IdSpace
) -> None:
    label_map = data.draw(label_maps(label_set))
    height, width = label_map.shape
    packed = encode_label_map(label_map, encoding, id_space, label_set)
    unpacked = decode_label_map(packed, encoding, width, height)
    np.testing.assert_array_equal(unpacked, expected_ids(label_map, id_space, label_set))
    assert unpacked.dtype == np.uint8
    assert unpacked.flags.writeable


@pytest.mark.parametrize("encoding", OF_IDS)
def test_views_of_larger_maps_can_be_packed(encoding: LabelMapEncoding) -> None:
    view = stripes()[::2, 1::3]
    packed = encode_label_map(view, encoding, IdSpace.TRAIN_ID, CITYSCAPES)
    np.testing.assert_array_equal(decode_label_map(packed, encoding, *view.shape[::-1]), view)


@pytest.mark.parametrize("id_space", IdSpace)
@pytest.mark.parametrize("label_set", LABEL_SETS.values(), ids=LABEL_SETS)
def test_png_shows_the_colours_of_the_label_set(id_space: IdSpace, label_set: LabelSet) -> None:
    label_map = stripes(label_set)
    packed = encode_label_map(label_map, LabelMapEncoding.PNG, id_space, label_set)
    picture = PIL.Image.open(io.BytesIO(packed))
    assert picture.mode == "P"
    shown = np.array(picture.convert("RGB"))[0, ::3]
    expected = [*(label.colour for label in label_set.labels), (0, 0, 0)]
    np.testing.assert_array_equal(shown, expected)


def test_colour_tables_are_black_where_there_is_no_class() -> None:
    table = colour_table(CITYSCAPES, IdSpace.LABEL_ID)
    assert table.shape == (256, 3)
    assert tuple(table[7]) == (128, 64, 128)
    assert not table[[0, 6, 9, IGNORE_INDEX]].any()
    assert not table.flags.writeable


@pytest.mark.parametrize("encoding", OF_IDS)
@pytest.mark.parametrize(("width", "height"), [(59, 7), (60, 8), (7, 61)])
def test_a_label_map_of_another_size_is_refused(
    encoding: LabelMapEncoding, width: int, height: int
) -> None:
    packed = encode_label_map(stripes(), encoding, IdSpace.TRAIN_ID, CITYSCAPES)
    with pytest.raises(InvalidInputError) as refusal:
        decode_label_map(packed, encoding, width, height)
    assert refusal.value.field == "label_map.data"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_without_a_palette_is_refused(mode: str) -> None:
    target = io.BytesIO()
    PIL.Image.new(mode, (4, 3)).save(target, "PNG")
    with pytest.raises(InvalidInputError, match=f"without a palette, of mode {mode}"):
        decode_label_map(target.getvalue(), LabelMapEncoding.PNG, 4, 3)


def test_a_zstd_frame_that_states_a_huge_size_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    with pytest.raises(InvalidInputError, match="holds 50000000 bytes; the label map has 12"):
        decode_label_map(bomb, LabelMapEncoding.ZSTD, 4, 3)


def test_a_zstd_frame_that_hides_a_huge_size_is_refused() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(50_000_000))
    with pytest.raises(InvalidInputError, match="truncated or corrupt zstd"):
        decode_label_map(bomb, LabelMapEncoding.ZSTD, 4, 3)


@given(
    ENCODINGS,
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.none() | st.integers(0, 10_000),
)
def test_broken_data_raises_nothing_but_our_errors(
    encoding: LabelMapEncoding, changes: list[tuple[int, int]], end: int | None
) -> None:
    label_map = stripes()
    height, width = label_map.shape
    packed = bytearray(encode_label_map(label_map, encoding, IdSpace.TRAIN_ID, CITYSCAPES))
    for place, value in changes:
        packed[place % len(packed)] = value
    if end is not None:
        del packed[end % len(packed) :]
    with suppress(InvalidInputError):
        assert decode_label_map(bytes(packed), encoding, width, height).shape == (height, width)


@given(ENCODINGS, st.binary(max_size=100))
def test_noise_is_refused(encoding: LabelMapEncoding, noise: bytes) -> None:
    assume(noise.strip() != b"[]")  # as COCO RLE, a label map without a class
    with pytest.raises(InvalidInputError):
        decode_label_map(noise, encoding, 101, 1)


@given(st.data(), st.sampled_from(IdSpace))
def test_a_delta_and_its_base_give_the_label_map(data: st.DataObject, id_space: IdSpace) -> None:
    label_map = data.draw(label_maps(CITYSCAPES))
    height, width = label_map.shape
    before = label_map.copy()
    rows, columns = (data.draw(st.integers(0, side)) for side in label_map.shape)
    before[:rows, :columns] = data.draw(st.integers(0, 18))
    ids, base = (in_id_space(each, id_space, CITYSCAPES) for each in (label_map, before))
    delta = encode_delta(ids, base)
    found = decode_label_map(delta, LabelMapEncoding.DELTA, width, height, base=base)
    np.testing.assert_array_equal(found, ids)
    assert found.flags.writeable
    np.testing.assert_array_equal(base, in_id_space(before, id_space, CITYSCAPES))


def test_the_delta_of_what_did_not_change_is_tiny() -> None:
    label_map = np.random.default_rng(0).integers(0, 19, (512, 1024), np.uint8)
    assert len(encode_delta(label_map, label_map)) < 16


def test_a_delta_of_a_label_map_of_another_size_is_refused() -> None:
    delta = encode_delta(stripes(), stripes())
    with pytest.raises(InvalidInputError, match="60x7, but is the change of a label map of 7x60"):
        decode_label_map(delta, LabelMapEncoding.DELTA, 60, 7, base=stripes().T)


def runs(*runs: tuple[int, int]) -> bytes:
    lengths = np.array([length for length, _ in runs], "<u4")
    planes = lengths.view(np.uint8).reshape(-1, 4).T
    return zlib.compress(planes.tobytes() + bytes(value for _, value in runs))


def test_runs_are_what_the_documents_tell() -> None:
    packed = runs((1, 0), (3, 5), (1, 0), (1, 9))
    found = decode_label_map(packed, LabelMapEncoding.DELTA, 3, 2)
    assert found.tolist() == [[0, 5, 5], [5, 0, 9]]
    again = encode_label_map(found, LabelMapEncoding.DELTA, IdSpace.TRAIN_ID, CITYSCAPES)
    assert zlib.decompress(again) == zlib.decompress(packed)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (runs((7, 1)), "runs of 7 pixels; 3x2 has 6"),
        (runs((5, 1)), "runs of 5 pixels"),
        (runs(), "runs of 0 pixels"),
        (runs((2**32 - 1, 1), (2**32 - 1, 1)), "runs of 8589934590 pixels"),
        (zlib.compress(bytes(4)), "no runs"),
        (zlib.compress(bytes(50_000_000)), "no runs"),
        (runs((6, 1)) + b"x", "no runs"),
        (runs((6, 1))[:-1], "truncated"),
        (b"PK", "corrupt deflate"),
    ],
)
def test_what_are_no_runs_of_this_size_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told) as refusal:
        decode_label_map(data, LabelMapEncoding.DELTA, 3, 2)
    assert refusal.value.field == "label_map.data"


def test_coco_rle_lists_the_classes_that_are_seen() -> None:
    label_map = np.array([[3, IGNORE_INDEX], [3, 1]], np.uint8)
    packed = encode_label_map(label_map, LabelMapEncoding.COCO_RLE, IdSpace.TRAIN_ID, CITYSCAPES)
    assert json.loads(packed) == [
        {"category_id": 1, "segmentation": {"size": [2, 2], "counts": "31"}},
        {"category_id": 3, "segmentation": {"size": [2, 2], "counts": "022"}},
    ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{}", "no list of classes"),
        (b'[{"category_id": 255, "segmentation": {}}]', "category_id 255"),
        (b'[{"category_id": 1, "segmentation": {"size": [2, 3]}}]', r"size \[2, 3\]"),
        (b'[{"category_id": 1, "segmentation": {"size": [3, 2]}}]', "corrupt COCO RLE"),
    ],
)
def test_what_is_no_coco_rle_of_this_size_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        decode_label_map(data, LabelMapEncoding.COCO_RLE, 2, 3)


def test_an_overlay_holds_no_ids() -> None:
    overlay = LabelMapEncoding.OVERLAY_JPEG
    with pytest.raises(InvalidInputError, match="overlay_jpeg holds no ids"):
        encode_label_map(stripes(), overlay, IdSpace.TRAIN_ID, CITYSCAPES)
    with pytest.raises(InvalidInputError, match="overlay_jpeg holds no ids"):
        decode_label_map(b"", overlay, 1, 1)


def test_the_digest_is_blake2b_of_the_ids_row_by_row() -> None:
    label_map = stripes()
    expected = hashlib.blake2b(bytes(label_map.ravel().tolist()), digest_size=16).digest()
    assert label_map_digest(label_map) == expected
    assert label_map_digest(np.asfortranarray(label_map)) == expected
    assert label_map_digest(label_map[:, ::-1]) != expected


def test_resizing_repeats_classes_and_mixes_none() -> None:
    label_map = np.array([[0, 8], [IGNORE_INDEX, 3]], np.uint8)
    enlarged = resize_label_map(label_map, 6, 4)
    np.testing.assert_array_equal(enlarged, label_map.repeat(2, axis=0).repeat(3, axis=1))
    np.testing.assert_array_equal(resize_label_map(enlarged, 2, 2), label_map)


def test_resizing_to_the_same_size_returns_the_map_as_it_is() -> None:
    label_map = stripes()
    assert resize_label_map(label_map, 60, 7) is label_map
