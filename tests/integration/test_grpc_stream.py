"""Sessions over gRPC that go well."""

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest

from segstream.client import ImageEncoding, LabelMapEncoding
from segstream.label_sets import CITYSCAPES
from segstream.media.images import Image, decode_image, encode_image, fit_height
from segstream.media.label_maps import (
    LabelMap,
    decode_label_map,
    label_map_digest,
    resize_label_map,
)
from segstream.models import LMANet
from segstream.models.native.library import best_isa
from segstream.v1 import segmentation_pb2 as pb
from tests.integration.conftest import StartService
from tests.support.models import DRIVE, MEMORY_LENGTH, STREET, make_video, segment_alone
from tests.support.requests import config_request, frame_request
from tests.support.service import RunningService

ENCODINGS = {
    pb.LABEL_MAP_ENCODING_PNG: LabelMapEncoding.PNG,
    pb.LABEL_MAP_ENCODING_ZSTD: LabelMapEncoding.ZSTD,
    pb.LABEL_MAP_ENCODING_RAW: LabelMapEncoding.RAW,
    pb.LABEL_MAP_ENCODING_COCO_RLE: LabelMapEncoding.COCO_RLE,
    pb.LABEL_MAP_ENCODING_DELTA: LabelMapEncoding.DELTA,
}
STAGES = (
    "queue",
    "image_decode",
    "encode",
    "memory_read",
    "fuse_decode",
    "label_map_encode",
)


def label_map_of(result: pb.FrameResult) -> LabelMap:
    packed = result.label_map
    encoding = ENCODINGS[packed.encoding]
    return decode_label_map(packed.data, encoding, packed.width, packed.height)


def as_label_ids(train_ids: LabelMap) -> LabelMap:
    return np.array([label.label_id for label in CITYSCAPES.labels], np.uint8)[train_ids]


async def test_ready_then_a_result_for_each_frame_then_the_end(service: RunningService) -> None:
    call = service.call()
    ready = await call.open(session_id="ride-1")
    assert ready.session_id == "ride-1"
    assert ready.model == STREET
    assert (ready.origin, ready.next_frame_index) == (pb.SESSION_ORIGIN_NEW, 0)
    assert ready.epoch > 0
    assert ready.memory_length == MEMORY_LENGTH
    assert list(ready.class_names) == [label.name for label in CITYSCAPES.labels]
    for index, image in enumerate(make_video(2)):
        await call.send(frame_request(index, image))
        result = await call.next_result()
        assert (result.label_map.width, result.label_map.height) == (64, 48)
    ended = await call.close()
    assert (ended.reason, ended.num_label_maps) == (pb.SESSION_END_REASON_CLIENT_CLOSED, 2)


async def test_the_service_chooses_an_id_where_none_is_given(service: RunningService) -> None:
    first, second = service.call(), service.call()
    ids = {(await call.open()).session_id for call in (first, second)}
    assert len(ids) == 2
    assert all(ids)


async def test_index_and_timestamp_come_back_as_they_were_sent(service: RunningService) -> None:
    sent = [(0, -1), (1, 0), (5, 2**62), (2**63, -(2**62))]
    call = service.call()
    await call.open()
    for (index, timestamp_us), image in zip(sent, make_video(4), strict=True):
        await call.send(frame_request(index, image, timestamp_us=timestamp_us))
    results = [await call.next_result() for _ in sent]
    assert [(result.frame_index, result.timestamp_us) for result in results] == sent
    assert (await call.close()).num_label_maps == len(sent)


async def test_label_maps_are_those_of_the_stream_object(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    video = make_video(7)
    expected = segment_alone(models[STREET], video)
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB, verify_digests=True) as session,
    ):
        results = [result async for result in session.segment(video)]
    for result, label_map in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.label_map, label_map)
        assert result.digest == label_map_digest(label_map)
    assert len({result.digest for result in results}) == len(results)


async def test_memory_grows_to_its_length_and_stays_there(service: RunningService) -> None:
    async with service.client() as client, client.stream() as session:
        depths = [r.num_memory_frames async for r in session.segment(make_video(6))]
    assert depths == [0, 1, 2, 3, 3, 3]


async def test_a_session_starts_without_the_memory_of_one_before(service: RunningService) -> None:
    video = make_video(3)
    seen = []
    async with service.client() as client:
        for _ in range(2):
            async with client.stream(session_id="same") as session:
                seen.append([(r.num_memory_frames, r.digest) async for r in session.segment(video)])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("encoding", [ImageEncoding.JPEG, ImageEncoding.PNG])
async def test_frames_travel_in_any_encoding(
    service: RunningService, models: Mapping[str, LMANet], encoding: ImageEncoding
) -> None:
    video = make_video(3)
    decoded = [decode_image(encode_image(image, encoding), encoding) for image in video]
    expected = segment_alone(models[STREET], decoded)
    async with service.client() as client, client.stream(frame_encoding=encoding) as session:
        seen = [result.label_map async for result in session.segment(video)]
    np.testing.assert_array_equal(seen, expected)


async def test_an_unnamed_encoding_is_told_by_the_first_bytes(service: RunningService) -> None:
    video = make_video(2)
    call = service.call()
    await call.open()
    for index, encoding in enumerate((ImageEncoding.JPEG, ImageEncoding.PNG)):
        request = frame_request(index, video[index], encoding)
        request.frame.encoding = pb.IMAGE_ENCODING_UNSPECIFIED
        request.frame.ClearField("width")
        await call.send(request)
        assert (await call.next_result()).HasField("label_map")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("id_space", [pb.ID_SPACE_TRAIN_ID, pb.ID_SPACE_LABEL_ID])
async def test_every_packing_holds_the_same_label_map(
    service: RunningService,
    models: Mapping[str, LMANet],
    encoding: pb.LabelMapEncoding,
    id_space: pb.IdSpace,
) -> None:
    video = make_video(2)
    call = service.call()
    await call.open(label_map_encoding=encoding, id_space=id_space)
    for index, train_ids in enumerate(segment_alone(models[STREET], video)):
        await call.send(frame_request(index, video[index]))
        result = await call.next_result()
        assert result.label_map.encoding == encoding
        wanted = as_label_ids(train_ids) if id_space == pb.ID_SPACE_LABEL_ID else train_ids
        np.testing.assert_array_equal(label_map_of(result), wanted)
        assert result.label_map.digest == label_map_digest(train_ids)


async def test_png_and_train_ids_are_what_an_empty_configuration_gets(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    [image] = make_video(1)
    call = service.call()
    await call.send(pb.StreamSegmentRequest(config=pb.SessionConfig()), frame_request(0, image))
    assert (await call.next()).ready.model == STREET
    result = await call.next_result()
    assert result.label_map.encoding == pb.LABEL_MAP_ENCODING_PNG
    np.testing.assert_array_equal(label_map_of(result), segment_alone(models[STREET], [image])[0])


async def test_a_model_is_chosen_by_name(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    video = make_video(3)
    async with (
        service.client() as client,
        client.stream(model=DRIVE, frame_encoding=ImageEncoding.RAW_RGB) as session,
    ):
        results = [result async for result in session.segment(video)]
    assert session.ready.model == DRIVE
    assert session.ready.label_set.name == "camvid"
    assert [result.num_memory_frames for result in results] == [0, 1, 1]
    np.testing.assert_array_equal(
        [result.label_map for result in results], segment_alone(models[DRIVE], video)
    )


async def test_higher_frames_are_segmented_at_the_working_height(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    video = make_video(3, 96, 132)
    small = segment_alone(models[STREET], [fit_height(image, 40) for image in video])
    assert small[0].shape == (40, 55)
    async with (
        service.client() as client,
        client.stream(
            frame_encoding=ImageEncoding.RAW_RGB, max_working_height=40, verify_digests=True
        ) as session,
    ):
        seen = [result.label_map async for result in session.segment(video)]
    np.testing.assert_array_equal(seen, [resize_label_map(each, 132, 96) for each in small])


async def test_lower_frames_keep_their_size(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    video = make_video(2)
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB, max_working_height=1080) as session,
    ):
        seen = [result.label_map async for result in session.segment(video)]
    np.testing.assert_array_equal(seen, segment_alone(models[STREET], video))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (37, 61), (200, 8)])
async def test_any_frame_size_is_segmented(
    service: RunningService, models: Mapping[str, LMANet], size: tuple[int, int]
) -> None:
    video = make_video(3, *size)
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session,
    ):
        seen = [result.label_map async for result in session.segment(video)]
    np.testing.assert_array_equal(seen, segment_alone(models[STREET], video))


async def test_stage_timings_add_up(service: RunningService) -> None:
    async with service.client() as client, client.stream() as session:
        results = [r async for r in session.segment(make_video(4), max_in_flight=1)]
    for result in results:
        timings = result.timings
        stages = [getattr(timings, f"{stage}_seconds") for stage in STAGES]
        assert all(seconds >= 0 for seconds in stages)
        assert timings.encode_seconds > 0
        assert timings.fuse_decode_seconds > 0
        assert sum(stages) <= timings.total_seconds + 1e-5
        assert timings.total_seconds <= result.round_trip_seconds
        assert timings.batch_size == 1


async def test_metrics_count_each_frame_in_each_stage(service: RunningService) -> None:
    async with service.client() as client, client.stream() as session:
        timings = [result.timings async for result in session.segment(make_video(5))]
    for stage in (*STAGES, "total"):
        count = await service.metric("segstream_stage_seconds_count", model=STREET, stage=stage)
        seconds = await service.metric("segstream_stage_seconds_sum", model=STREET, stage=stage)
        assert count == 5
        told = sum(getattr(each, f"{stage}_seconds") for each in timings)
        assert seconds == pytest.approx(told, abs=1e-5)
    assert await service.metric("segstream_frames_total", model=STREET, outcome="ok") == 5
    assert await service.metric("segstream_streams_ended_total", reason="client_closed") == 1


async def test_pages_are_given_back_when_the_session_ends(service: RunningService) -> None:
    call = service.call()
    await call.open()
    for index, image in enumerate(make_video(6)):
        await call.send(frame_request(index, image))
        await call.next_result()
    assert await service.metric("segstream_streams") == 1
    assert await service.metric("segstream_pages_used") == MEMORY_LENGTH
    assert await service.metric("segstream_memory_bytes") > 0
    await call.close()
    for name in ("sessions", "pages_used", "pages", "memory_bytes"):
        assert await service.metric(f"segstream_{name}") == 0


async def test_sessions_share_forwards_and_keep_their_memories_apart(
    start_service: StartService, models: Mapping[str, LMANet]
) -> None:
    service = await start_service(runtime="onnx")
    videos = [make_video(8, seed=seed) for seed in range(4)]
    seen = await segment_side_by_side(service, videos)
    count = await service.metric("segstream_batch_size_count", model=STREET)
    assert count == 32
    assert await service.metric("segstream_batch_size_sum", model=STREET) > count
    for video, label_maps in zip(videos, seen, strict=True):
        expected = segment_alone(models[STREET], video)
        # torch is not bit-invariant to the batch: next to a tie a pixel may change its class.
        assert np.mean(np.array(label_maps) != np.array(expected)) <= 1e-4


@pytest.mark.parametrize(("runtime", "is_batching"), [("onnx", True), ("native", False)])
async def test_frames_that_wait_together_go_into_one_forward_where_that_helps(
    start_service: StartService, runtime: str, is_batching: bool
) -> None:
    if runtime == "native" and best_isa() is None:
        pytest.skip("the kernel was not built")
    service = await start_service(runtime=runtime)
    calls = [service.call() for _ in range(4)]
    service.engine.gate.clear()
    for call, video in zip(calls, (make_video(1, seed=seed) for seed in range(4)), strict=True):
        await call.open()
        await call.send(frame_request(0, video[0]))
    await service.engine.wait_for_steps(4)
    service.engine.gate.set()
    sizes = [(await call.next_result()).timings.batch_size for call in calls]
    # The engine may take some while the others are still on their way to it.
    assert (max(sizes) >= 2) is is_batching


async def test_batches_are_bounded(start_service: StartService) -> None:
    service = await start_service(max_batch_size=2, runtime="onnx")
    await segment_side_by_side(service, [make_video(4, seed=seed) for seed in range(5)])
    assert await service.metric("segstream_batch_size_bucket", le="2.0") == 20


async def test_sessions_of_different_sizes_and_models_do_not_mix(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    kinds = [(STREET, (48, 64)), (STREET, (40, 56)), (DRIVE, (48, 64))]
    videos = [make_video(5, *size, seed=seed) for seed, (_, size) in enumerate(kinds)]
    names = [name for name, _ in kinds]
    seen = await segment_side_by_side(service, videos, names)
    for name, video, label_maps in zip(names, videos, seen, strict=True):
        np.testing.assert_array_equal(label_maps, segment_alone(models[name], video))


async def test_a_client_that_does_not_wait_is_held_back(service: RunningService) -> None:
    """Only so many frames are taken in while the engine is busy; the rest wait on the wire."""
    service.engine.gate.clear()
    call = service.call()
    await call.open()
    [image] = make_video(1, 480, 640)
    sending = asyncio.create_task(call.send(*(frame_request(index, image) for index in range(60))))
    await service.engine.wait_for_steps(1)
    done, _ = await asyncio.wait([sending], timeout=0.5)
    assert not done
    call.cancel()
    await asyncio.wait([sending])
    service.engine.gate.set()
    await service.wait_for_metric("segstream_streams", 0)


async def test_a_silent_session_ends_after_the_idle_limit(start_service: StartService) -> None:
    service = await start_service(idle_seconds=0.2)
    call = service.call()
    await call.open()
    await call.send(frame_request(0, make_video(1)[0]))
    await call.next_result()
    ended = await call.read_end()
    assert (ended.reason, ended.num_label_maps) == (pb.SESSION_END_REASON_IDLE, 1)
    assert await service.metric("segstream_streams_ended_total", reason="idle") == 1


async def test_the_configuration_and_all_frames_may_be_sent_at_once(
    service: RunningService,
) -> None:
    call = service.call()
    frames = [frame_request(index, image) for index, image in enumerate(make_video(3))]
    await call.send(config_request(), *frames)
    await call.half_close()
    assert (await call.next()).HasField("ready")
    for index in range(3):
        assert (await call.next_result()).frame_index == index
    assert (await call.read_end()).num_label_maps == 3


async def test_the_end_of_frames_closes_the_clients_side(service: RunningService) -> None:
    call = service.call()
    await call.open()
    end = pb.StreamSegmentRequest(end_of_frames=pb.EndOfFrames())
    await call.send(frame_request(0, make_video(1)[0]), end)
    await call.next_result()
    ended = await call.read_end()
    assert (ended.reason, ended.num_label_maps) == (pb.SESSION_END_REASON_CLIENT_CLOSED, 1)


async def test_a_session_without_frames_ends_in_order(service: RunningService) -> None:
    call = service.call()
    await call.open()
    assert (await call.close()).num_label_maps == 0


async def segment_side_by_side(
    service: RunningService, videos: list[list[Image]], names: list[str] | None = None
) -> list[list[LabelMap]]:
    async with service.client() as client:

        async def segment(video: list[Image], name: str) -> list[LabelMap]:
            async with client.stream(
                model=name, frame_encoding=ImageEncoding.RAW_RGB, verify_digests=True
            ) as session:
                return [result.label_map async for result in session.segment(video)]

        names = names or [""] * len(videos)
        return await asyncio.gather(*map(segment, videos, names))
