"""What the client makes of label maps that come as a change since another."""

import numpy as np
import pytest

from segstream.client.decoder import AnswerDecoder
from segstream.errors import EngineError
from segstream.label_sets import CAMVID
from segstream.media.label_maps import (
    IdSpace,
    LabelMap,
    LabelMapEncoding,
    encode_delta,
    encode_label_map,
    label_map_digest,
)
from segstream.v1 import segmentation_pb2 as pb

ONE, OTHER = (np.random.default_rng(seed).integers(0, 11, (5, 8), np.uint8) for seed in (1, 2))


def packed(label_map: LabelMap, data: bytes, base: int | None = None) -> pb.LabelMap:
    return pb.LabelMap(
        encoding=pb.LABEL_MAP_ENCODING_DELTA,
        width=8,
        height=5,
        data=data,
        digest=label_map_digest(label_map),
        base_frame_index=base,
    )


def whole(label_map: LabelMap) -> pb.LabelMap:
    data = encode_label_map(label_map, LabelMapEncoding.DELTA, IdSpace.TRAIN_ID, CAMVID)
    return packed(label_map, data)


def holding(frame_index: int, label_map: LabelMap) -> AnswerDecoder:
    decoder = AnswerDecoder(verifies_digests=True)
    found = decoder.decode(frame_index, whole(label_map)).label_map
    assert found is not None
    decoder.hold(frame_index, found)
    found[:] = 0  # the caller may do with it as it likes
    return decoder


def test_a_change_is_made_good_on_the_label_map_that_was_named() -> None:
    decoder = holding(0, ONE)
    assert decoder.newest == 0
    found = decoder.decode(4, packed(OTHER, encode_delta(OTHER, ONE), base=0)).label_map
    np.testing.assert_array_equal(found, OTHER)


def test_a_change_since_a_label_map_that_was_let_go_is_an_error() -> None:
    decoder = holding(3, ONE)
    decoder.let_go_before(3)
    decoder.decode(5, packed(OTHER, encode_delta(OTHER, ONE), base=3))
    decoder.let_go_before(4)
    with pytest.raises(EngineError, match="the change since frame 3, which was not named"):
        decoder.decode(5, packed(OTHER, encode_delta(OTHER, ONE), base=3))


def test_a_change_since_another_label_map_than_is_said_is_an_error() -> None:
    decoder = holding(0, OTHER)
    with pytest.raises(EngineError, match="belies its digest"):
        decoder.decode(1, packed(ONE, encode_delta(ONE, ONE), base=0))


def test_a_confidence_map_of_another_size_is_an_error() -> None:
    answer = whole(ONE)
    answer.confidence = b"PNG"
    with pytest.raises(EngineError, match="truncated or corrupt PNG"):
        AnswerDecoder(verifies_digests=True).decode(0, answer)
