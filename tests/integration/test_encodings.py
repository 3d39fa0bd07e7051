"""How label maps travel: deltas, COCO RLE, overlays, confidence; over gRPC and the WebSocket."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from segstream.client import FrameResult, ImageEncoding, LabelMapEncoding
from segstream.errors import NotFoundError
from segstream.label_sets import CITYSCAPES
from segstream.media.confidence import decode_confidence
from segstream.media.images import Image, decode_image
from segstream.media.label_maps import LabelMap, decode_label_map
from segstream.media.overlay import draw_overlay
from segstream.models import LMANet
from segstream.v1 import segmentation_pb2 as pb
from tests.integration.conftest import StartService
from tests.support.models import STREET, as_frames, make_video, segment_alone
from tests.support.requests import frame_request
from tests.support.service import RunningService
from tests.support.websocket import calling, frame_message


def steady_video(num_frames: int) -> list[Image]:
    """A camera that stands still; something small moves in front of it."""
    [scene] = make_video(1, 96, 128)
    video = [scene.copy() for _ in range(num_frames)]
    for index, image in enumerate(video):
        image[40:48, 8 * index : 8 * index + 8] = 255 - image[40:48, 8 * index : 8 * index + 8]
    return video


VIDEO = steady_video(6)


@pytest.fixture
def expected(models: Mapping[str, LMANet]) -> list[LabelMap]:
    # Without memory, or the label maps would differ in many places.
    return [segment_alone(models[STREET], [image])[0] for image in VIDEO]


async def stream(service: RunningService, **options: Any) -> list[FrameResult]:
    options = {"frame_encoding": ImageEncoding.RAW_RGB, "is_memoryless": True, **options}
    async with service.client() as client, client.stream(**options) as session:
        return [result async for result in session.segment(VIDEO, max_in_flight=1)]


async def test_the_client_reads_deltas_by_itself(
    service: RunningService, expected: list[LabelMap]
) -> None:
    results = await stream(service, label_map_encoding=LabelMapEncoding.DELTA)
    np.testing.assert_array_equal([result.label_map for result in results], expected)
    assert [result.base_frame_index for result in results] == [None, 0, 1, 2, 3, 4]
    assert max(result.num_bytes for result in results[1:]) < results[0].num_bytes / 2


async def test_the_client_reads_coco_rle_by_itself(
    service: RunningService, expected: list[LabelMap]
) -> None:
    results = await stream(service, label_map_encoding=LabelMapEncoding.COCO_RLE)
    np.testing.assert_array_equal([result.label_map for result in results], expected)


async def test_an_overlay_comes_in_place_of_the_label_map(
    service: RunningService, expected: list[LabelMap]
) -> None:
    results = await stream(
        service,
        label_map_encoding=LabelMapEncoding.OVERLAY_JPEG,
        overlay_opacity=0.75,
        overlay_quality=100,
    )
    for result, image, label_map in zip(results, VIDEO, expected, strict=True):
        wanted = draw_overlay(image, label_map, CITYSCAPES, opacity=0.75)
        assert np.abs(result.overlay.astype(int) - wanted).mean() < 2
        with pytest.raises(NotFoundError, match="came without label map"):
            _ = result.label_map


@pytest.mark.parametrize("encoding", LabelMapEncoding)
async def test_confidence_is_the_softmax_of_the_network(
    service: RunningService, encoding: LabelMapEncoding
) -> None:
    results = await stream(service, label_map_encoding=encoding, wants_confidence=True)
    for result, image in zip(results[:2], VIDEO, strict=False):
        logits = service.models[STREET].stream(runtime="torch").step(as_frames(image))[0]
        softmax = logits[: CITYSCAPES.num_classes].softmax(dim=0).amax(dim=0).numpy()
        assert np.abs(result.confidence - 255 * softmax).max() < 1.5
    [plain] = (await stream(service))[:1]
    with pytest.raises(NotFoundError, match="came without confidence"):
        _ = plain.confidence


def read_delta(result: pb.FrameResult, held: Mapping[int, LabelMap]) -> LabelMap:
    packed = result.label_map
    base = held[packed.base_frame_index] if packed.HasField("base_frame_index") else None
    return decode_label_map(
        packed.data, LabelMapEncoding.DELTA, packed.width, packed.height, base=base
    )


CONFIG = {
    "session_id": "a",
    "is_memoryless": True,
    "label_map_encoding": pb.LABEL_MAP_ENCODING_DELTA,
}


async def test_a_client_that_never_says_what_it_holds_gets_whole_label_maps(
    service: RunningService, expected: list[LabelMap]
) -> None:
    call = service.call()
    await call.open(**CONFIG)
    for index, image in enumerate(VIDEO):
        await call.send(frame_request(index, image))
        result = await call.next_result()
        assert not result.label_map.HasField("base_frame_index")
        np.testing.assert_array_equal(read_delta(result, {}), expected[index])
    await call.close()


async def test_deltas_go_on_after_a_break_and_after_answers_were_lost(
    service: RunningService, expected: list[LabelMap]
) -> None:
    call = service.call()
    await call.open(**CONFIG)
    held: dict[int, LabelMap] = {}
    for index in range(4):
        request = frame_request(index, VIDEO[index])
        if index:
            request.frame.held_frame_index = index - 1
        await call.send(request)
        held[index] = read_delta(await call.next_result(), held)
    call.cancel()
    await service.wait_for_metric("segstream_sessions_parked", 1)
    held = {1: held[1]}  # what it had of 2 and 3 is lost
    call = service.call()
    await call.open(**CONFIG, resume=pb.Resume(next_frame_index=2))
    bases = []
    for index in range(2, 6):
        request = frame_request(index, VIDEO[index])
        request.frame.held_frame_index = max(held)
        await call.send(request)
        result = await call.next_result()
        bases.append(
            result.label_map.base_frame_index
            if result.label_map.HasField("base_frame_index")
            else None
        )
        held[index] = read_delta(result, held)
    assert bases == [None, None, 3, 4]  # from store they come whole
    np.testing.assert_array_equal([held[index] for index in range(1, 6)], expected[1:])
    await call.close()


@pytest.mark.parametrize("is_memory_kept", [True, False])
async def test_deltas_go_on_with_another_replica(
    start_service: StartService, tmp_path: Path, is_memory_kept: bool
) -> None:
    folders = [tmp_path / "one", tmp_path / ("one" if is_memory_kept else "other")]
    first = await start_service(spill_directory=folders[0])
    expected = segment_alone(first.models[STREET], VIDEO)
    config = {**CONFIG, "is_memoryless": False}
    call = first.call()
    await call.open(**config)
    held: dict[int, LabelMap] = {}
    for index in range(3):
        await call.send(frame_request(index, VIDEO[index]))
        held[index] = read_delta(await call.next_result(), held)
    stopping = first.stop()
    await call.read_end()
    await stopping
    second = await start_service(spill_directory=folders[1])
    call = second.call()
    ready = await call.open(**config, resume=pb.Resume(next_frame_index=3))
    assert (ready.next_frame_index == 3) is is_memory_kept
    for index in range(ready.next_frame_index, 3):
        request = frame_request(index, VIDEO[index])
        request.frame.is_memorise_only = True
        await call.send(request)
        assert (await call.next_result()).HasField("skipped")
    for index in range(3, 6):
        request = frame_request(index, VIDEO[index])
        request.frame.held_frame_index = index - 1
        await call.send(request)
        result = await call.next_result()
        if index == 3 and not is_memory_kept:
            assert not result.label_map.HasField("base_frame_index")  # it has none to tell it by
        held[index] = read_delta(result, held)
    np.testing.assert_array_equal([held[index] for index in range(6)], expected)
    await call.close()


@pytest.mark.parametrize(
    ("style", "field"),
    [({"opacity": 1.01}, "config.overlay.opacity"), ({"quality": 101}, "config.overlay.quality")],
)
async def test_an_overlay_out_of_bounds_is_refused(
    service: RunningService, style: dict[str, Any], field: str
) -> None:
    call = service.call()
    config = pb.SessionConfig(overlay=pb.OverlayStyle(**style))
    await call.send(pb.StreamSegmentRequest(config=config))
    code, text = await call.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f"{field} is 101" if field.endswith("quality") else f"{field} is 1.0")


async def test_deltas_and_confidence_over_the_websocket(
    service: RunningService, expected: list[LabelMap]
) -> None:
    async with calling(service) as call:
        await call.open(
            label_map_encoding="LABEL_MAP_ENCODING_DELTA", wants_confidence=True, is_memoryless=True
        )
        held: list[LabelMap] = []
        for index, image in enumerate(VIDEO):
            names = {"held_frame_index": index - 1} if index else {}
            await call.send(frame_message(index, image, **names))
            result, data = await call.next("result")
            packed = result["label_map"]
            size = packed["width"], packed["height"]
            assert packed.get("base_frame_index") == (str(index - 1) if index else None)
            cut = len(data) - packed["num_confidence_bytes"]
            base = held[-1] if index else None
            held.append(decode_label_map(data[:cut], LabelMapEncoding.DELTA, *size, base=base))
            assert decode_confidence(data[cut:], *size).max() > 0
        np.testing.assert_array_equal(held, expected)
        await call.end()


async def test_overlays_over_the_websocket(service: RunningService) -> None:
    async with calling(service) as call:
        await call.open(
            label_map_encoding="LABEL_MAP_ENCODING_OVERLAY_JPEG", overlay={"quality": 60}
        )
        await call.send(frame_message(0, VIDEO[0]))
        result, data = await call.next("result")
        assert result["label_map"]["encoding"] == "LABEL_MAP_ENCODING_OVERLAY_JPEG"
        assert decode_image(data, ImageEncoding.JPEG).shape == VIDEO[0].shape
        await call.end()
