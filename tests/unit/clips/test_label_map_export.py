import io
import json
import zipfile

import numpy as np
import PIL.Image
import pytest
import zstandard
from pycocotools import mask as coco_mask

from segstream.clips.label_map_export import Ids, LabelMapFormat, export_label_maps
from segstream.clips.report import ClipReport
from segstream.clips.results import LabelMaps
from segstream.label_sets import CITYSCAPES, IGNORE_INDEX
from tests.support.clips import label_maps as loaded

ROAD, CAR = 0, 13
MAPS = np.full((3, 4, 5), ROAD, np.uint8)
MAPS[1, 1:3, 2:] = CAR
MAPS[2, 0] = IGNORE_INDEX
COLOURS = {id: CITYSCAPES.labels[id].colour for id in (ROAD, CAR)} | {IGNORE_INDEX: (0, 0, 0)}
LABEL_IDS = {ROAD: 7, CAR: 26, IGNORE_INDEX: IGNORE_INDEX}


def exported(file_format: LabelMapFormat, ids: Ids) -> bytes:
    report = ClipReport(
        clip_id="",
        name="",
        model="street",
        label_set="cityscapes",
        memory_length=1,
        width=5,
        height=4,
        frames_per_second=4.0,
        num_frames=3,
        num_attempts=1,
        classes=[],
        timeline_seconds=[],
        consistency=None,
        consistencies=[],
        latency={},
    )
    # Two zstd frames, as of two chunks.
    packed = zstandard.compress(MAPS[:2].tobytes()) + zstandard.compress(MAPS[2:].tobytes())
    return b"".join(export_label_maps(LabelMaps(io.BytesIO(packed), report), file_format, ids))


@pytest.mark.parametrize("ids", list(Ids))
def test_pngs_in_a_zip(ids: Ids) -> None:
    archive = zipfile.ZipFile(io.BytesIO(exported(LabelMapFormat.PNG_ZIP, ids)))
    assert archive.namelist() == ["000000.png", "000001.png", "000002.png"]
    assert archive.testzip() is None
    for index, name in enumerate(archive.namelist()):
        picture = PIL.Image.open(io.BytesIO(archive.read(name)))
        assert picture.mode == ("RGB" if ids is Ids.COLOUR else "P")
        assert np.array_equal(np.array(picture), in_terms_of(ids)[index])
        if ids is not Ids.COLOUR:
            colours = np.array(picture.convert("RGB"))
            assert np.array_equal(colours, in_terms_of(Ids.COLOUR)[index])


@pytest.mark.parametrize("ids", list(Ids))
def test_one_numpy_array(ids: Ids) -> None:
    array = loaded(exported(LabelMapFormat.NPY_ZST, ids))
    assert array.dtype == np.uint8
    assert np.array_equal(array, in_terms_of(ids))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("ids", "road", "car"),
    [(Ids.TRAIN_ID, 0, 13), (Ids.LABEL_ID, 7, 26), (Ids.COLOUR, "#804080", "#00008e")],
)
def test_masks_line_by_line(ids: Ids, road: object, car: object) -> None:
    lines = [json.loads(line) for line in exported(LabelMapFormat.COCO_RLE, ids).splitlines()]
    assert [(line["frame"], line["seconds"]) for line in lines] == [(0, 0), (1, 0.25), (2, 0.5)]
    assert [segment[ids.value] for segment in lines[1]["segments"]] == [road, car]
    for line in lines:
        for segment in line["segments"]:
            train_id = ROAD if segment["name"] == "road" else CAR
            mask = coco_mask.decode(segment["segmentation"])
            assert np.array_equal(mask, MAPS[line["frame"]] == train_id)
            assert segment["area"] == mask.sum()


def in_terms_of(ids: Ids) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    if ids is Ids.TRAIN_ID:
        return MAPS
    table = COLOURS if ids is Ids.COLOUR else LABEL_IDS
    shape = (*MAPS.shape, 3) if ids is Ids.COLOUR else MAPS.shape
    return np.array([table[id] for id in MAPS.ravel().tolist()], np.uint8).reshape(shape)
