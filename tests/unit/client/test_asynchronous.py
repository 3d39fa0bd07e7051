import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import numpy as np
import pytest

from segstream.client import AsyncClient, ImageEncoding, SessionEnd, SessionEndReason
from segstream.errors import EngineError, InvalidInputError, NotFoundError, UnavailableError
from segstream.media.images import Image
from segstream.v1 import segmentation_pb2 as pb
from tests.unit.client.fake_service import FakeService, Served, images, label_map_of, serving

RAW = ImageEncoding.RAW_RGB


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
async def served(fake: FakeService) -> AsyncIterator[Served]:
    async with serving(fake) as served:
        yield served


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.address) as client:
        yield client


async def live(frames: list[Image], pause_seconds: float = 0.0) -> AsyncIterator[Image]:
    for frame in frames:
        await asyncio.sleep(pause_seconds)
        yield frame


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_live", [True, False])
async def test_results_come_in_order_and_belong_to_their_frames(
    client: AsyncClient, is_live: bool
) -> None:
    frames = images(20)
    async with client.stream(verify_digests=True, frame_encoding=RAW) as session:
        source = live(frames) if is_live else frames
        results = [result async for result in session.segment(source)]
    assert [result.frame_index for result in results] == list(range(20))
    for frame, result in zip(frames, results, strict=True):
        np.testing.assert_array_equal(result.label_map, label_map_of(frame))
    assert session.end == SessionEnd(SessionEndReason.CLIENT_CLOSED, 20)


async def test_the_window_is_used_and_kept(client: AsyncClient, fake: FakeService) -> None:
    fake.delay_seconds = 0.01
    num_taken = num_given = 0

    def frames() -> Iterator[Image]:
        nonlocal num_taken
        for image in images(12):
            num_taken += 1
            assert num_taken - num_given <= 3
            yield image

    async with client.stream(frame_encoding=RAW) as session:
        async for _ in session.segment(frames(), max_in_flight=3):
            num_given += 1
    assert num_given == 12
    assert fake.most_in_flight == 3


async def test_a_caller_who_stops_taking_stops_the_frames(
    client: AsyncClient, fake: FakeService
) -> None:
    async with client.stream(frame_encoding=RAW) as session:
        results = session.segment(live(images(50)), max_in_flight=2)
        await anext(results)
        await asyncio.sleep(0.2)
        assert len(fake.frames) == 3
        assert len([result async for result in results]) == 49


async def test_a_result_does_not_wait_for_the_next_frame(client: AsyncClient) -> None:
    never = asyncio.Event()

    async def frames() -> AsyncIterator[Image]:
        yield images(1)[0]
        await never.wait()

    async with client.stream(frame_encoding=RAW) as session, asyncio.timeout(5):
        assert (await anext(session.segment(frames()))).frame_index == 0


async def test_a_window_of_none_is_refused(client: AsyncClient) -> None:
    async with client.stream() as session:
        with pytest.raises(InvalidInputError, match="max_in_flight is 0"):
            await anext(session.segment(images(1), max_in_flight=0))


async def test_what_a_caller_left_behind_is_dropped(client: AsyncClient) -> None:
    async with client.stream(frame_encoding=RAW) as session:
        async for result in session.segment(images(9)):
            if result.frame_index == 1:
                break
        rest = [result async for result in session.segment([images(8)[7]])]
    assert [int(result.label_map[0, 0]) for result in rest] == [7]


async def test_the_error_of_a_frame_leaves_the_stream_running(
    client: AsyncClient, fake: FakeService
) -> None:
    fake.frame_errors[1] = pb.FrameError(code=5, message="no such thing")
    async with client.stream(frame_encoding=RAW) as session:
        results = [result async for result in session.segment(images(3))]
    assert isinstance(results[1].error, NotFoundError)
    assert results[2].label_map.shape == (4, 6)


async def test_a_refused_session_raises(client: AsyncClient, fake: FakeService) -> None:
    fake.refuse_session = (grpc.StatusCode.NOT_FOUND, "model is 'x'; there is none")
    with pytest.raises(NotFoundError, match="model is 'x'"):
        await client.stream(model="x").__aenter__()


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (grpc.StatusCode.INTERNAL, EngineError),
        (grpc.StatusCode.CANCELLED, UnavailableError),
    ],
)
async def test_an_error_in_mid_stream_ends_it(
    client: AsyncClient,
    fake: FakeService,
    status: grpc.StatusCode,
    error_type: type[Exception],
) -> None:
    fake.fail_at[2] = (status, "it is over")
    async with client.stream(frame_encoding=RAW) as session:
        with pytest.raises(error_type):
            _ = [result async for result in session.segment(images(9))]
        with pytest.raises(error_type):
            await anext(session.segment(images(1)))


async def test_a_service_that_vanishes_is_unavailable(served: Served, client: AsyncClient) -> None:
    async with client.stream(frame_encoding=RAW) as session:
        results = session.segment(images(100))
        await anext(results)
        await served.server.stop(None)
        with pytest.raises(UnavailableError, match=f"segstream at {served.address}"):
            _ = [result async for result in results]


async def test_a_service_that_shuts_down_in_order_says_so(
    client: AsyncClient, fake: FakeService
) -> None:
    fake.end_at = 2
    async with client.stream(frame_encoding=RAW) as session:
        with pytest.raises(UnavailableError, match="ended the session: shutdown"):
            _ = [result async for result in session.segment(images(5))]


async def test_nobody_there() -> None:
    async with AsyncClient("127.0.0.1:1", connect_timeout_seconds=0.2) as client:
        with pytest.raises(UnavailableError, match=r"^no segstream service at 127\.0\.0\.1:1$"):
            await client.stream().__aenter__()


async def test_leaving_early_cancels_the_call(client: AsyncClient, fake: FakeService) -> None:
    fake.silent_from = 2
    async with asyncio.timeout(2), client.stream(frame_encoding=RAW) as session:
        async for result in session.segment(images(9)):
            if result.frame_index == 1:
                await wait_until(lambda: len(fake.frames) > 2)
                break
    await wait_until(lambda: fake.was_cancelled)


async def test_cancelling_the_caller_cancels_the_call(
    client: AsyncClient, fake: FakeService
) -> None:
    fake.silent_from = 2

    async def segment() -> None:
        async with client.stream(frame_encoding=RAW) as session:
            async for _ in session.segment(images(9)):
                pass

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(segment(), 0.3)
    await wait_until(lambda: fake.was_cancelled)


async def test_nobody_advances_the_frames_after_the_end(client: AsyncClient) -> None:
    frames = iter(images(1000))
    async with client.stream(frame_encoding=RAW) as session:
        await anext(session.segment(frames))
    num_left = len(list(frames))
    assert num_left >= 990


@pytest.mark.parametrize("is_live", [True, False])
async def test_an_error_of_the_frames_reaches_the_caller(
    client: AsyncClient, is_live: bool
) -> None:
    def frames() -> Iterator[Image]:
        yield images(1)[0]
        raise OSError("the camera is gone")

    async def live_frames() -> AsyncIterator[Image]:
        for frame in frames():
            yield frame

    async with client.stream(frame_encoding=RAW) as session:
        with pytest.raises(OSError, match="the camera is gone"):
            _ = [result async for result in session.segment(live_frames() if is_live else frames())]


async def test_what_is_no_frame_is_refused(client: AsyncClient) -> None:
    async with client.stream(frame_encoding=RAW) as session:
        with pytest.raises(InvalidInputError, match="must be a uint8 array"):
            await anext(session.segment([np.zeros((4, 6, 3))]))  # type: ignore[list-item]


async def test_closing_the_client_ends_its_sessions(client: AsyncClient) -> None:
    async with client.stream(frame_encoding=RAW) as session:
        await client.close()
        with pytest.raises(UnavailableError):
            await anext(session.segment(images(2)))


async def test_a_closed_client_opens_no_session(client: AsyncClient) -> None:
    await client.close()
    with pytest.raises(UnavailableError, match="was closed"):
        async with client.stream():
            pass
