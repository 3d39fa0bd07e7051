import asyncio
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import numpy as np
import PIL.Image
import pytest

from segstream.errors import (
    EngineError,
    ExhaustedError,
    InvalidInputError,
    SegstreamError,
    TooLargeError,
    UnavailableError,
)
from segstream.label_sets import CAMVID, CITYSCAPES
from segstream.media.confidence import decode_confidence
from segstream.media.images import ImageEncoding, decode_image
from segstream.media.label_maps import (
    IdSpace,
    LabelMap,
    LabelMapEncoding,
    decode_label_map,
    label_map_digest,
)
from segstream.streaming import (
    EncodedLabelMap,
    Frame,
    FrameResult,
    Session,
    SessionConfig,
)
from segstream.telemetry.metrics import STAGES
from tests.unit.streaming.fakes import (
    ENGINE_SECONDS,
    HEIGHT,
    MEMORY_LENGTH,
    MODEL,
    OTHER_MODEL,
    WIDTH,
    HeldCodecs,
    Service,
    corrupt_frame,
    label_map_of,
    make_frame,
    marks,
    memories,
    settle,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

pytestmark = pytest.mark.timeout(30)

OF_IDS = [encoding for encoding in LabelMapEncoding if encoding.holds_ids]


def encoded(result: FrameResult) -> EncodedLabelMap:
    assert isinstance(result.outcome, EncodedLabelMap), result.outcome
    return result.outcome


def error(result: FrameResult) -> SegstreamError:
    assert isinstance(result.outcome, SegstreamError), result.outcome
    return result.outcome


def ids(result: FrameResult) -> LabelMap:
    outcome = encoded(result)
    return decode_label_map(outcome.data, outcome.encoding, outcome.width, outcome.height)


async def segment_all(session: Session, *frames: Frame) -> list[FrameResult]:
    return [await session.segment(frame) for frame in frames]


async def test_answer_carries_the_clients_index_and_timestamp(service: Service) -> None:
    async with service.open() as session:
        result = await session.segment(make_frame(5))
    assert (result.frame_index, result.timestamp_us) == (5, 1005)
    assert (encoded(result).width, encoded(result).height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(ids(result), label_map_of(5))


async def test_memory_is_the_last_committed_frames_oldest_first(service: Service) -> None:
    async with service.open() as session:
        results = await segment_all(session, *map(make_frame, range(5)))
        assert service.pool.num_used == MEMORY_LENGTH
    assert list(memories(service.engine.steps)) == [
        (0, ()),
        (1, (0,)),
        (2, (0, 1)),
        (3, (1, 2)),
        (4, (2, 3)),
    ]
    assert [result.num_memory_frames for result in results] == [0, 1, 2, 2, 2]


async def test_sessions_do_not_see_each_others_frames(service: Service) -> None:
    async with service.open() as one, service.open() as other:
        for index in range(3):
            await asyncio.gather(
                one.segment(make_frame(index, 10 + index)),
                other.segment(make_frame(index, 20 + index)),
            )
        assert service.pool.num_used == 2 * MEMORY_LENGTH
    assert dict(memories(service.engine.steps))[12] == (10, 11)
    assert dict(memories(service.engine.steps))[22] == (20, 21)


async def test_indices_may_skip_frames(service: Service) -> None:
    async with service.open() as session:
        results = await segment_all(session, make_frame(7), make_frame(9), make_frame(1000, 3))
        assert session.next_frame_index == 1001
    assert [result.num_memory_frames for result in results] == [0, 1, 2]


@pytest.mark.parametrize("index", [0, 3, 4])
async def test_index_going_backwards_is_refused(service: Service, index: int) -> None:
    async with service.open() as session:
        await segment_all(session, make_frame(3), make_frame(4))
        result = await session.segment(make_frame(index))
        assert isinstance(error(result), InvalidInputError)
        assert error(result).field == "frame.index"
        assert f"{index}, must be at least 5" in error(result).message
        assert (result.frame_index, result.timestamp_us) == (index, 1000 + index)
        assert encoded(await session.segment(make_frame(5)))
    assert marks(service.engine.steps) == [3, 4, 5]


async def test_change_of_size_in_mid_stream_is_refused(service: Service) -> None:
    async with service.open() as session:
        await session.segment(make_frame(0))
        result = await session.segment(make_frame(1, width=WIDTH + 1))
        assert isinstance(error(result), InvalidInputError)
        assert error(result).field == "frame.data"
        assert "17x12" in error(result).message
        assert "16x12" in error(result).message
        assert encoded(await session.segment(make_frame(1)))


async def test_frame_that_fails_leaves_the_session_as_it_was(service: Service) -> None:
    service.engine.failures[50] = EngineError("the forward failed")
    bad_frames = [
        corrupt_frame(2),
        Frame(2, ImageEncoding.JPEG, make_frame(2).data),
        Frame(2, None, b""),
        Frame(2, None, b"GIF89a"),
        make_frame(1),
        make_frame(2, width=100),
        make_frame(2, 50),
    ]
    async with service.open() as session:
        await segment_all(session, make_frame(0), make_frame(1))
        for bad in bad_frames:
            result = await session.segment(bad)
            assert isinstance(result.outcome, SegstreamError)
            assert (result.num_memory_frames, result.stage_seconds) == (0, {})
            assert session.next_frame_index == 2
            assert service.pool.num_used == MEMORY_LENGTH
        result = await session.segment(make_frame(2))
        assert result.num_memory_frames == 2
    assert service.engine.steps[-1].memory == (0, 1)
    assert session.num_label_maps == 3


async def test_session_may_begin_with_failures(service: Service) -> None:
    service.engine.failures[50] = EngineError("the forward failed")
    async with service.open() as session:
        results = await segment_all(
            session, corrupt_frame(0), make_frame(0, 50), make_frame(0), make_frame(1)
        )
    assert [type(result.outcome) for result in results] == [
        InvalidInputError,
        EngineError,
        EncodedLabelMap,
        EncodedLabelMap,
    ]
    assert service.engine.steps[-1].memory == (0,)


async def test_size_of_a_session_is_that_of_its_first_good_frame(service: Service) -> None:
    service.engine.failures[50] = EngineError("the forward failed")
    async with service.open() as session:
        results = await segment_all(
            session,
            make_frame(0, 50, width=64, height=48),
            make_frame(0),
            make_frame(1, width=64, height=48),
        )
    assert [type(result.outcome) for result in results] == [
        EngineError,
        EncodedLabelMap,
        InvalidInputError,
    ]


@pytest.mark.parametrize("failure", [EngineError("lost"), UnavailableError("stopping")])
async def test_what_the_engine_raises_is_the_answer(
    service: Service, failure: SegstreamError
) -> None:
    service.engine.failures[0] = failure
    async with service.open() as session:
        result = await session.segment(make_frame(0))
        assert result.outcome is failure
        assert service.pool.num_used == 0


async def test_fault_of_the_service_is_raised_and_leaks_no_page(service: Service) -> None:
    service.engine.failures[1] = ZeroDivisionError("a bug")
    async with service.open() as session:
        await session.segment(make_frame(0))
        with pytest.raises(ZeroDivisionError):
            await session.segment(make_frame(1))
        assert service.pool.num_used == 1


async def test_session_that_finds_no_memory_at_all_is_refused() -> None:
    page_bytes = 2 * 2 * 2 * 4
    service = Service(max_bytes=page_bytes * (MEMORY_LENGTH + 1))
    async with service.open() as session:
        await session.segment(make_frame(0))
        async with service.open() as late:
            with pytest.raises(ExhaustedError, match="bytes of memory"):
                await late.segment(make_frame(0, width=4 * WIDTH))
        assert encoded(await session.segment(make_frame(1)))


async def test_image_that_stands_alone_needs_a_single_page() -> None:
    page_bytes = 2 * 2 * 2 * 4
    service = Service(max_bytes=page_bytes)
    async with service.segmenter.open_alone(SessionConfig()) as session:
        assert encoded(await session.segment(make_frame(0)))
        assert service.pool.num_pages == 1
        assert service.pool.num_used == 0


async def test_image_beyond_the_limits_is_refused(service: Service) -> None:
    async with service.open() as session:
        result = await session.segment(make_frame(0, width=101, height=100))
    assert isinstance(error(result), TooLargeError)


async def test_raw_frames_have_the_size_the_client_states(service: Service) -> None:
    image = np.full((HEIGHT, WIDTH, 3), 4, np.uint8)
    raw = Frame(0, ImageEncoding.RAW_RGB, image.tobytes(), width=WIDTH, height=HEIGHT)
    missized = Frame(1, ImageEncoding.RAW_RGB, image.tobytes(), width=WIDTH, height=HEIGHT + 1)
    async with service.open() as session:
        results = await segment_all(session, raw, missized)
    np.testing.assert_array_equal(ids(results[0]), label_map_of(4))
    assert isinstance(error(results[1]), InvalidInputError)


@pytest.mark.parametrize("encoding", OF_IDS)
@pytest.mark.parametrize("id_space", IdSpace)
async def test_label_map_comes_in_the_form_asked_for(
    service: Service, encoding: LabelMapEncoding, id_space: IdSpace
) -> None:
    config = SessionConfig(model=OTHER_MODEL, label_map_encoding=encoding, id_space=id_space)
    async with service.open(config) as session:
        result = await session.segment(make_frame(13))
    assert encoded(result).encoding is encoding
    expected = CITYSCAPES.labels[13].label_id if id_space is IdSpace.LABEL_ID else 13
    assert set(ids(result).flat) == {expected}


@pytest.mark.parametrize("encoding", LabelMapEncoding)
@pytest.mark.parametrize("id_space", IdSpace)
async def test_digest_is_of_the_train_ids_whatever_their_form(
    service: Service, encoding: LabelMapEncoding, id_space: IdSpace
) -> None:
    config = SessionConfig(model=OTHER_MODEL, label_map_encoding=encoding, id_space=id_space)
    async with service.open(config) as session:
        result = await session.segment(make_frame(13))
    train_ids = np.full((HEIGHT, WIDTH), 13, np.uint8)
    assert encoded(result).digest == label_map_digest(train_ids)


@pytest.mark.parametrize("max_working_height", [0, 6])
async def test_an_overlay_is_the_frame_at_its_own_size_in_the_colours_of_its_classes(
    service: Service, max_working_height: int
) -> None:
    config = SessionConfig(
        label_map_encoding=LabelMapEncoding.OVERLAY_JPEG,
        max_working_height=max_working_height,
        overlay_opacity=0.25,
        overlay_quality=95,
    )
    async with service.open(config) as session:
        outcome = encoded(await session.segment(make_frame(3)))
        assert session._unfinished == {}
    picture = decode_image(outcome.data, ImageEncoding.JPEG)
    assert (outcome.width, outcome.height) == (WIDTH, HEIGHT)
    assert outcome.digest == label_map_digest(label_map_of(3))
    expected = 0.25 * np.array(CAMVID.labels[3].colour) + 0.75 * 3
    assert np.abs(picture - expected).max() < 8


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"overlay_opacity": 1.5}, "config.overlay.opacity"),
        ({"overlay_opacity": float("nan")}, "config.overlay.opacity"),
        ({"overlay_quality": 101}, "config.overlay.quality"),
        ({"overlay_quality": 0}, "config.overlay.quality"),
    ],
)
def test_an_overlay_that_cannot_look_so_is_refused(option: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError, match="it must be from") as refusal:
        SessionConfig(**option)
    assert refusal.value.field == field


@pytest.mark.parametrize("encoding", LabelMapEncoding)
async def test_confidence_comes_where_it_is_asked_for(
    service: Service, encoding: LabelMapEncoding
) -> None:
    for wants_confidence in (False, True):
        config = SessionConfig(label_map_encoding=encoding, wants_confidence=wants_confidence)
        async with service.open(config) as session:
            outcome = encoded(await session.segment(make_frame(7)))
        assert bool(outcome.confidence) is wants_confidence
    confidence = decode_confidence(outcome.confidence, WIDTH, HEIGHT)
    np.testing.assert_array_equal(confidence, np.full((HEIGHT, WIDTH), 7))


async def test_confidence_has_the_frames_own_size(service: Service) -> None:
    config = SessionConfig(max_working_height=6, wants_confidence=True)
    async with service.open(config) as session:
        outcome = encoded(await session.segment(make_frame(7)))
    assert set(decode_confidence(outcome.confidence, WIDTH, HEIGHT).flat) == {7}


async def test_png_shows_the_colours_of_the_label_set(service: Service) -> None:
    async with service.open() as session:
        result = await session.segment(make_frame(3))
    picture = PIL.Image.open(io.BytesIO(encoded(result).data)).convert("RGB")
    assert picture.getpixel((0, 0)) == CAMVID.labels[3].colour


@pytest.mark.parametrize(
    ("max_working_height", "working_size"),
    [(0, (48, 64)), (100, (48, 64)), (48, (48, 64)), (24, (24, 32)), (7, (7, 9))],
)
async def test_label_map_has_the_frames_own_size_whatever_the_network_worked_on(
    service: Service, max_working_height: int, working_size: tuple[int, int]
) -> None:
    async with service.open(SessionConfig(max_working_height=max_working_height)) as session:
        result = await session.segment(make_frame(6, width=64, height=48))
    assert service.engine.steps[0].size == working_size
    assert (encoded(result).width, encoded(result).height) == (64, 48)
    np.testing.assert_array_equal(ids(result), label_map_of(6, width=64, height=48))


async def test_sizes_that_are_worked_on_alike_are_still_different_sizes(service: Service) -> None:
    async with service.open(SessionConfig(max_working_height=6)) as session:
        results = await segment_all(
            session, make_frame(0), make_frame(1, width=2 * WIDTH, height=2 * HEIGHT)
        )
    assert {step.size for step in service.engine.steps} == {(6, 8)}
    assert error(results[1]).field == "frame.data"


async def test_every_stage_is_timed(service: Service) -> None:
    async with service.open() as session:
        (result,) = await segment_all(session, make_frame(0))
    seconds = result.stage_seconds
    assert set(seconds) == set(STAGES)
    for stage in ("encode", "memory_read", "fuse_decode"):
        assert seconds[stage] == ENGINE_SECONDS[stage]
    assert seconds["queue"] >= ENGINE_SECONDS["queue"]
    assert 0 < seconds["image_decode"] < seconds["total"]
    assert 0 < seconds["label_map_encode"] < seconds["total"]
    assert result.batch_size == 1


async def test_engine_that_tells_no_times_is_no_fault(service: Service) -> None:
    service.engine.stage_seconds = {}
    async with service.open() as session:
        assert encoded(await session.segment(make_frame(0)))


async def test_queue_time_counts_the_wait_before_the_engine() -> None:
    codecs = HeldCodecs()
    service = Service(codecs=codecs)
    async with service.open() as session:
        work = session.begin(make_frame(0))
        await settle()
        codecs.work()
        await session.advance(work)
        assert work.seconds["queue"] > ENGINE_SECONDS["queue"]
        finishing = asyncio.create_task(session.finish(work))
        await settle()
        codecs.work()
        result = await finishing
    assert result.stage_seconds["total"] > result.stage_seconds["image_decode"]


async def test_images_are_worked_on_off_the_event_loop() -> None:
    threads: set[str] = set()

    class NotedThreads(ThreadPoolExecutor):
        def submit(
            self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs
        ) -> "Future[_R]":
            def noted() -> _R:
                threads.add(threading.current_thread().name)
                return fn(*args, **kwargs)

            return super().submit(noted)

    with NotedThreads(2, thread_name_prefix="codecs") as codecs:
        service = Service(codecs=codecs)
        async with service.open() as session:
            assert encoded(await session.segment(make_frame(0)))
    assert threads
    assert all(name.startswith("codecs") for name in threads)


async def test_decoding_of_later_frames_does_not_wait_for_the_engine() -> None:
    codecs = HeldCodecs()
    service = Service(codecs=codecs)
    async with service.open() as session:
        works = [session.begin(make_frame(index)) for index in range(3)]
        await settle()
        assert len(codecs.held) == 3
        for which in (2, 1, 0):
            codecs.work(which)
        for work in works:
            await session.advance(work)
        finishing = asyncio.gather(*map(session.finish, works))
        await codecs.work_off()
        await finishing
    assert list(memories(service.engine.steps)) == [(0, ()), (1, (0,)), (2, (0, 1))]


async def test_frames_are_counted_by_outcome(service: Service) -> None:
    service.engine.failures[50] = EngineError("the forward failed")
    async with service.open() as session, service.open(SessionConfig(model=OTHER_MODEL)) as other:
        await segment_all(
            session, make_frame(0), make_frame(1), corrupt_frame(2), make_frame(2, 50)
        )
        await other.segment(make_frame(0))
    assert service.num_frames("ok") == 2
    assert service.num_frames("InvalidInputError") == 1
    assert service.num_frames("EngineError") == 1
    assert service.num_frames("ok", OTHER_MODEL) == 1
    assert service.sample("batch_size_sum", model=MODEL) == 2
    for stage in STAGES:
        assert service.sample("stage_seconds_count", model=MODEL, stage=stage) == 2
    encode_seconds = service.sample("stage_seconds_sum", model=MODEL, stage="encode")
    assert encode_seconds == 2 * ENGINE_SECONDS["encode"]
