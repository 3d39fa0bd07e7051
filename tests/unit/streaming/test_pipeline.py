import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from structlog.typing import EventDict

from segstream.errors import EngineError, InvalidInputError, SegstreamError
from segstream.streaming import EncodedLabelMap, Frame, FrameResult, SessionConfig
from tests.unit.streaming.fakes import (
    MEMORY_LENGTH,
    BrokenCodecs,
    HeldCodecs,
    Service,
    Wire,
    corrupt_frame,
    make_frame,
    marks,
    memories,
    settle,
)

pytestmark = pytest.mark.timeout(30)


def closed_wire(*frames: Frame) -> Wire:
    wire = Wire(*frames)
    wire.close()
    return wire


def indices(results: list[FrameResult]) -> list[int]:
    return [result.frame_index for result in results]


def ended(logs: list[EventDict]) -> list[tuple[str, int]]:
    return [
        (event["reason"], event["num_label_maps"])
        for event in logs
        if event["event"] == "stream ended"
    ]


async def collect(service: Service, wire: Wire, results: list[FrameResult]) -> None:
    """Like ``Service.answers``, but keeps what came before an error."""
    async for result in service.serve(wire):
        results.append(result)


class GoneClient:
    """A stream in a task of its own, cancelled when the client leaves."""

    def __init__(self, service: Service, wire: AsyncIterator[Frame]) -> None:
        self.service = service
        self.results: list[FrameResult] = []
        self.task = asyncio.create_task(self._consume(wire))

    async def _consume(self, wire: AsyncIterator[Frame]) -> None:
        async for result in self.service.serve(wire, SessionConfig(session_id="gone")):
            self.results.append(result)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        assert self.task.cancelled()


async def test_every_frame_is_answered_in_order(service: Service, logs: list[EventDict]) -> None:
    results = await service.answers(closed_wire(*map(make_frame, range(20))))
    assert indices(results) == list(range(20))
    assert [result.timestamp_us for result in results] == list(range(1000, 1020))
    assert [result.num_memory_frames for result in results] == [0, 1] + [2] * 18
    assert ended(logs) == [("client_closed", 20)]


async def test_stream_without_frames_ends_like_any_other(
    service: Service, logs: list[EventDict]
) -> None:
    assert await service.answers(closed_wire()) == []
    assert ended(logs) == [("client_closed", 0)]


async def test_faults_of_frames_are_answers_among_the_others(service: Service) -> None:
    service.engine.failures[50] = EngineError("the forward failed")
    wire = closed_wire(
        make_frame(0),
        corrupt_frame(1),
        make_frame(1),
        make_frame(0),
        make_frame(2, width=99),
        make_frame(2, 50),
        make_frame(2),
    )
    results = await service.answers(wire)
    assert [type(result.outcome) for result in results] == [
        EncodedLabelMap,
        InvalidInputError,
        EncodedLabelMap,
        InvalidInputError,
        InvalidInputError,
        EngineError,
        EncodedLabelMap,
    ]
    assert indices(results) == [0, 1, 1, 0, 2, 2, 2]
    assert list(memories(service.engine.steps)) == [
        (0, ()),
        (1, (0,)),
        (50, (0, 1)),
        (2, (0, 1)),
    ]


async def test_memory_advances_in_order_however_long_decoding_takes() -> None:
    codecs = HeldCodecs()
    service = Service(codecs=codecs)
    answers = asyncio.create_task(service.answers(closed_wire(*map(make_frame, range(3)))))
    await settle()
    assert len(codecs.held) == 3
    codecs.work(2)
    codecs.work(1)
    await settle()
    assert service.engine.steps == []
    while codecs.held:
        codecs.work()
        await settle()
    assert indices(await answers) == [0, 1, 2]
    assert list(memories(service.engine.steps)) == [(0, ()), (1, (0,)), (2, (0, 1))]


async def test_answers_stay_in_order_however_long_encoding_takes() -> None:
    codecs = HeldCodecs()
    service = Service(codecs=codecs)
    wire = Wire(*map(make_frame, range(3)))
    client = GoneClient(service, wire)
    await settle()
    for _ in range(3):
        codecs.work()
    await settle()
    assert len(codecs.held) == 3, "three label maps to encode"
    codecs.work(2)
    codecs.work(1)
    await settle()
    assert client.results == []
    codecs.work(0)
    await settle()
    assert indices(client.results) == [0, 1, 2]
    await client.leave()


async def test_session_has_one_frame_in_the_engine_at_a_time(service: Service) -> None:
    service.engine.gate.clear()
    answers = asyncio.create_task(service.answers(closed_wire(*map(make_frame, range(6)))))
    await service.engine.entered.acquire()
    await settle()
    assert marks(service.engine.steps) == [0]
    service.engine.gate.set()
    assert len(await answers) == 6
    assert service.engine.max_running == 1


async def test_next_frame_is_decoded_while_the_engine_is_busy() -> None:
    codecs = HeldCodecs()
    service = Service(codecs=codecs)
    service.engine.gate.clear()
    wire = Wire(make_frame(0), make_frame(1))
    client = GoneClient(service, wire)
    await settle()
    codecs.work()
    await service.engine.entered.acquire()
    assert len(codecs.held) == 1, "frame 1, to be decoded"
    await client.leave()
    service.engine.gate.set()
    await codecs.work_off()
    assert service.segmenter.num_streams == 0


@pytest.mark.parametrize("max_pending_frames", [1, 2, 5])
async def test_client_is_held_back_while_nobody_takes_the_answers(max_pending_frames: int) -> None:
    service = Service(max_pending_frames=max_pending_frames)
    wire = Wire(*map(make_frame, range(50)))
    wire.close()
    # A queue of frames begun and one of frames advanced, and a frame in the hands of each worker.
    bound = 2 * (max_pending_frames + 1)
    async with aclosing(service.serve(wire)) as results:
        first = await anext(results)
        await settle()
        assert wire.num_read <= 1 + bound
        second = await anext(results)
        await settle()
        assert wire.num_read <= 2 + bound
        rest = [result async for result in results]
    assert indices([first, second, *rest]) == list(range(50))


async def test_client_is_held_back_while_the_engine_is_slow(service: Service) -> None:
    service.engine.gate.clear()
    wire = Wire(*map(make_frame, range(50)))
    client = GoneClient(service, wire)
    await service.engine.entered.acquire()
    await settle()
    assert wire.num_read == 1 + 2 + 1, "in the engine, waiting for it, and in the reader's hands"
    service.engine.gate.set()
    await settle()
    await client.leave()


async def test_results_nobody_asks_for_read_nothing(service: Service) -> None:
    wire = Wire(make_frame(0))
    async with service.open() as session:
        results = service.segmenter.pipeline(session).results(wire)
        await settle()
        assert wire.num_read == 0
        await results.aclose()


async def test_what_the_wire_raises_comes_after_the_answers_before_it(
    service: Service, logs: list[EventDict]
) -> None:
    wire = Wire(make_frame(0), make_frame(1))
    wire.fail(InvalidInputError("a second configuration"))
    results: list[FrameResult] = []
    with pytest.raises(InvalidInputError, match="second configuration"):
        await collect(service, wire, results)
    assert indices(results) == [0, 1]
    assert ended(logs) == [("fault", 2)]


async def test_fault_of_the_engine_ends_the_stream_and_not_the_others(
    service: Service, logs: list[EventDict]
) -> None:
    service.engine.failures[11] = ZeroDivisionError("a bug")
    other = asyncio.create_task(service.answers(closed_wire(*map(make_frame, range(5)))))
    results: list[FrameResult] = []
    with pytest.raises(ZeroDivisionError):
        await collect(service, Wire(*map(make_frame, range(10, 15))), results)
    assert indices(results) == [10]
    assert indices(await other) == list(range(5))
    assert sorted(ended(logs)) == [("client_closed", 5), ("fault", 1)]


async def test_fault_of_the_codecs_ends_the_stream(logs: list[EventDict]) -> None:
    service = Service(codecs=BrokenCodecs())
    with pytest.raises(RuntimeError, match="after shutdown"):
        await service.answers(Wire(*map(make_frame, range(5))))
    assert ended(logs) == [("fault", 0)]
    assert service.segmenter.num_streams == 0


async def test_label_maps_of_a_client_that_has_gone_are_kept_until_it_comes_back() -> None:
    codecs = HeldCodecs()
    service = Service(codecs=codecs)
    client = GoneClient(service, Wire(*map(make_frame, range(3))))
    await settle()
    for _ in range(3):
        codecs.work()
    await settle()
    await client.leave()
    await codecs.work_off()
    assert service.segmenter.num_streams == 0
    config = SessionConfig(session_id="gone", resume_from=0)
    back = asyncio.create_task(service.answers(closed_wire(*map(make_frame, range(4))), config))
    await codecs.work_off()
    results = await back
    assert [result.is_duplicate for result in results] == [True, True, True, False]
    assert marks(service.engine.steps) == [0, 1, 2, 3]


async def test_client_gone_while_the_engine_works_leaves_the_page_to_the_engine(
    service: Service, logs: list[EventDict]
) -> None:
    client = GoneClient(service, wire := Wire(make_frame(0), make_frame(1)))
    await settle()
    assert indices(client.results) == [0, 1]
    service.engine.gate.clear()
    wire.send(make_frame(2), make_frame(3))
    for _ in range(3):
        await service.engine.entered.acquire()
    pool = service.pool
    await client.leave()
    await settle()
    assert ended(logs) == [("client_gone", 2)]
    assert service.num_ended("client_gone") == 1
    assert service.engine.num_running == 1
    assert pool.num_used == MEMORY_LENGTH + 1, "the frame in the engine and what it reads"
    assert service.holds("gone")
    service.engine.gate.set()
    await settle()
    assert pool.num_used == MEMORY_LENGTH, "for the client that may come back"
    pool.check_integrity()
    assert service.holds("gone")
    assert marks(service.engine.steps) == [0, 1, 2]


async def test_engine_that_fails_after_the_client_has_gone_leaks_no_page(
    service: Service,
) -> None:
    service.engine.gate.clear()
    service.engine.failures[0] = EngineError("the forward failed")
    client = GoneClient(service, Wire(make_frame(0)))
    await service.engine.entered.acquire()
    pool = service.pool
    await client.leave()
    service.engine.gate.set()
    await settle()
    assert pool.num_used == 0


async def test_pages_of_a_gone_client_are_no_other_sessions_while_the_engine_is_on_them(
    service: Service,
) -> None:
    service.engine.gate.clear()
    client = GoneClient(service, Wire(make_frame(77)))
    await service.engine.entered.acquire()
    await client.leave()
    other = asyncio.create_task(service.answers(closed_wire(*map(make_frame, range(4)))))
    await service.engine.entered.acquire()
    assert service.pool.num_used == 2
    service.engine.gate.set()
    assert indices(await other) == [0, 1, 2, 3]
    assert list(memories(service.engine.steps))[1:] == [
        (0, ()),
        (1, (0,)),
        (2, (0, 1)),
        (3, (1, 2)),
    ]


async def test_stream_closed_between_two_answers_is_a_client_gone(
    service: Service, logs: list[EventDict]
) -> None:
    results = service.serve(Wire(make_frame(0), make_frame(1)))
    assert (await anext(results)).frame_index == 0
    service.engine.gate.clear()
    await results.aclose()
    service.engine.gate.set()
    await settle()
    assert [reason for reason, _ in ended(logs)] == ["client_gone"]
    assert service.segmenter.num_streams == 0


async def test_client_gone_while_its_frame_is_decoded() -> None:
    codecs = HeldCodecs()
    service = Service(codecs=codecs)
    client = GoneClient(service, Wire(make_frame(0)))
    await settle()
    await client.leave()
    await settle()
    assert service.segmenter.num_streams == 0
    codecs.work()
    await settle()
    assert service.engine.steps == []


async def test_client_gone_before_its_first_frame(service: Service, logs: list[EventDict]) -> None:
    client = GoneClient(service, Wire())
    await settle()
    await client.leave()
    assert ended(logs) == [("client_gone", 0)]


async def test_wire_that_breaks_as_the_client_goes_makes_no_noise(service: Service) -> None:
    wire = Wire(make_frame(0))
    client = GoneClient(service, wire)
    await settle()
    wire.fail(ConnectionError("the wire broke"))
    await client.leave()


async def test_wire_that_breaks_while_it_is_left_makes_no_noise(service: Service) -> None:
    async def wire() -> AsyncIterator[Frame]:
        yield make_frame(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("the call is over") from None

    client = GoneClient(service, wire())
    await settle()
    await client.leave()


async def test_wire_is_not_read_any_more_once_the_stream_has_ended(service: Service) -> None:
    is_left = asyncio.Event()

    async def wire() -> AsyncIterator[Frame]:
        try:
            await asyncio.Event().wait()
            yield make_frame(0)
        finally:
            is_left.set()

    client = GoneClient(service, wire())
    await settle()
    await client.leave()
    assert is_left.is_set()


async def test_silent_stream_ends_as_idle(logs: list[EventDict]) -> None:
    service = Service(idle_seconds=0.01)
    results = await service.answers(Wire(make_frame(0)))
    assert indices(results) == [0]
    assert ended(logs) == [("idle", 1)]
    assert service.num_ended("idle") == 1
    assert service.segmenter.num_streams == 0


async def test_stream_that_ends_as_idle_answers_what_was_taken_before() -> None:
    service = Service(idle_seconds=0.01)
    service.engine.gate.clear()
    answers = asyncio.create_task(service.answers(Wire(make_frame(0))))
    await service.engine.entered.acquire()
    await settle()
    service.engine.gate.set()
    assert indices(await answers) == [0]


async def test_client_that_waits_for_its_answer_is_not_idle() -> None:
    service = Service(idle_seconds=0.01)
    service.engine.gate.clear()
    wire = Wire(make_frame(0))
    answers = asyncio.create_task(service.answers(wire))
    await service.engine.entered.acquire()
    await asyncio.sleep(0.05)
    wire.send(make_frame(1))
    service.engine.gate.set()
    assert indices(await answers) == [0, 1]


async def test_client_that_takes_no_results_is_given_up(logs: list[EventDict]) -> None:
    service = Service(idle_seconds=0.01)

    async def never_reads() -> None:
        async for _ in service.serve(Wire(*map(make_frame, range(20)))):
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError, match="reads no results"):
        await asyncio.create_task(never_reads())
    await settle()
    assert [reason for reason, _ in ended(logs)] == ["idle"]
    assert service.segmenter.num_streams == 0


async def test_session_cut_off_by_the_shutdown_says_so(
    service: Service, logs: list[EventDict]
) -> None:
    client = GoneClient(service, Wire(make_frame(0)))
    await settle()
    await service.segmenter.drain(0.0)
    await client.leave()
    assert [reason for reason, _ in ended(logs)] == ["shutdown"]


async def test_shutdown_answers_what_was_taken_and_takes_no_more(
    service: Service, logs: list[EventDict]
) -> None:
    service.engine.gate.clear()
    wire = Wire(make_frame(0), make_frame(1))
    answers = asyncio.create_task(service.answers(wire))
    await service.engine.entered.acquire()
    await settle()
    draining = asyncio.create_task(service.segmenter.drain(30.0))
    await settle()
    wire.send(make_frame(2))
    assert not draining.done()
    service.engine.gate.set()
    assert indices(await answers) == [0, 1]
    await draining
    assert ended(logs) == [("shutdown", 2)]
    assert service.num_ended("shutdown") == 1
    assert wire.num_read == 2


async def test_client_that_never_pauses_cannot_put_off_the_shutdown(
    service: Service, logs: list[EventDict]
) -> None:
    num_read = 0

    async def endless() -> AsyncIterator[Frame]:
        nonlocal num_read
        while True:
            yield make_frame(num_read)
            num_read += 1
            assert num_read < 200

    results = service.serve(endless())
    taken = [await anext(results)]
    draining = asyncio.create_task(service.segmenter.drain(30.0))
    await asyncio.sleep(0)
    taken += [result async for result in results]
    await draining
    assert indices(taken) == list(range(len(taken)))
    assert len(taken) < 20
    assert ended(logs) == [("shutdown", len(taken))]


async def test_frames_that_ended_before_the_shutdown_are_a_client_closed(
    service: Service, logs: list[EventDict]
) -> None:
    service.engine.gate.clear()
    answers = asyncio.create_task(service.answers(closed_wire(make_frame(0))))
    await service.engine.entered.acquire()
    await settle()
    draining = asyncio.create_task(service.segmenter.drain(30.0))
    await settle()
    service.engine.gate.set()
    assert indices(await answers) == [0]
    await draining
    assert ended(logs) == [("client_closed", 1)]


@pytest.mark.parametrize("num_streams", [2, 4])
async def test_streams_side_by_side_do_not_mix(service: Service, num_streams: int) -> None:
    def wire(stream: int) -> Wire:
        return closed_wire(*(make_frame(i, 40 * stream + i) for i in range(6)))

    all_results = await asyncio.gather(
        *(service.answers(wire(stream)) for stream in range(num_streams))
    )
    for results in all_results:
        assert not any(isinstance(result.outcome, SegstreamError) for result in results)
        assert indices(results) == list(range(6))
    for mark, memory in memories(service.engine.steps):
        assert memory == tuple(range(max(mark - mark % 40, mark - MEMORY_LENGTH), mark))


async def test_end_of_the_event_loop_under_the_engine_leaks_no_page(service: Service) -> None:
    """It cancels all that is left, the engine's step included."""
    service.engine.gate.clear()
    client = GoneClient(service, Wire(make_frame(0)))
    await service.engine.entered.acquire()
    pool = service.pool
    await client.leave()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await settle()
    assert pool.num_used == 0


async def test_long_stream_has_no_more_tasks_than_a_short_one(service: Service) -> None:
    client = GoneClient(service, wire := Wire(make_frame(0)))
    await settle()
    num_tasks = len(asyncio.all_tasks())
    wire.send(*map(make_frame, range(1, 20)))
    await settle()
    await settle()
    assert len(client.results) == 20
    assert len(asyncio.all_tasks()) == num_tasks
    await client.leave()
