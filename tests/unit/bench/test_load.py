"""What a load does to sessions, and what is made of their answers; over no wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from segstream.bench.load import MAX_OUTSTANDING, Load, Measurement, Sample, run_load
from segstream.bench.service import ServiceResult, find_largest, percentiles_ms, sum_up
from segstream.bench.wires import Answer, FrameFormat, Session, Wire
from segstream.errors import EngineError, InvalidInputError, SegstreamError, UnavailableError
from segstream.media.images import ImageEncoding

FRAMES = [b"a", b"b", b"c"]
FORMAT = FrameFormat(4, 6, ImageEncoding.RAW_RGB)
STAGES = {
    "queue": 0.002,
    "image_decode": 0.003,
    "encode": 0.010,
    "memory_read": 0.004,
    "fuse_decode": 0.006,
    "label_map_encode": 0.001,
    "total": 0.027,
}


class FakeSession:
    """Answers as soon as it may."""

    def __init__(self, connection: "FakeConnection") -> None:
        self.connection = connection
        self.sent: list[bytes] = []
        self.most_outstanding = 0
        self._num_answered = 0

    async def send(self, frame: bytes) -> None:
        if self.connection.refusal is not None:
            raise self.connection.refusal
        self.sent.append(frame)
        self.most_outstanding = max(self.most_outstanding, len(self.sent) - self._num_answered)

    async def receive(self) -> Answer:
        await self.connection.gate.wait()
        await asyncio.sleep(0.001)
        self._num_answered += 1
        return Answer(STAGES, 2)


class FakeConnection:
    """Its sessions answer while the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: SegstreamError | None = None
        self.sessions: list[FakeSession] = []
        self.num_open = 0

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        session = FakeSession(self)
        self.sessions.append(session)
        self.num_open += 1
        yield session
        self.num_open -= 1

    async def memory_bytes(self) -> list[int]:
        return [100] * self.num_open


async def test_a_closed_loop_has_one_frame_under_way_in_each_session() -> None:
    connection = FakeConnection()
    load = Load(3, warm_up_seconds=0.05, seconds=0.2)
    measurement = await run_load(connection, FRAMES, load)
    assert len(connection.sessions) == 3
    assert [session.sent[0] for session in connection.sessions] == FRAMES
    assert [session.sent[3] for session in connection.sessions] == FRAMES
    assert {session.most_outstanding for session in connection.sessions} == {1}
    num_sent = sum(len(session.sent) for session in connection.sessions)
    assert 0 < len(measurement.samples) < num_sent, "the warm-up does not count"
    assert measurement.memory_bytes == [100, 100, 100]
    assert measurement.num_dropped == 0


async def test_think_time_passes_between_an_answer_and_the_next_frame() -> None:
    connection = FakeConnection()
    load = Load(1, think_seconds=10.0, warm_up_seconds=0.0, seconds=0.1)
    running = asyncio.create_task(run_load(connection, FRAMES, load))
    await asyncio.sleep(0.3)
    assert len(connection.sessions[0].sent) == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_an_open_loop_drops_what_a_late_service_cannot_take() -> None:
    connection = FakeConnection()
    connection.gate.clear()
    load = Load(1, frames_per_second=200, warm_up_seconds=0.0, seconds=0.5)
    running = asyncio.create_task(run_load(connection, FRAMES, load))
    await asyncio.sleep(1.0)
    connection.gate.set()
    measurement = await running
    [session] = connection.sessions
    assert 1 <= session.most_outstanding <= MAX_OUTSTANDING + 1
    assert measurement.num_dropped > 0
    assert len(session.sent) + measurement.num_dropped <= 101


def test_a_late_frame_s_latency_counts_from_when_it_was_due() -> None:
    assert Sample(due=1.0, answered=1.5, answer=Answer()).latency_seconds == 0.5


async def test_what_a_session_ends_with_ends_the_load() -> None:
    connection = FakeConnection()
    connection.refusal = UnavailableError("gone")
    with pytest.raises(UnavailableError, match="gone"):
        await run_load(connection, FRAMES, Load(2, warm_up_seconds=0.0, seconds=5.0))


def test_rate_and_think_time_exclude_each_other() -> None:
    with pytest.raises(InvalidInputError, match="think_time is 20 ms, but rate"):
        Load(frames_per_second=5.0, think_seconds=0.02)


def measurement_of(*answers: Answer) -> Measurement:
    samples = [Sample(0.0, 0.1 * (n + 1), answer) for n, answer in enumerate(answers)]
    return Measurement(2.0, samples, 3, [10, 20])


def test_everything_but_the_model_is_overhead() -> None:
    slow = STAGES | {"queue": 0.102, "total": 0.127}
    measurement = measurement_of(Answer(STAGES, 1), Answer(STAGES, 1), Answer(slow, 4))
    result = sum_up(measurement, Wire.GRPC, FORMAT, FRAMES, 7)
    assert result["overhead_ms_median"] == pytest.approx(7.0)
    assert (result["size"], result["encoding"], result["wire"]) == ("4x6", "raw", "grpc")
    assert result["streams"] == 7
    assert result["frames_per_second"] == 1.5
    assert result["total_ms"]["p50"] == pytest.approx(27.0)
    assert set(result["stage_ms"]) == set(STAGES) - {"total"}
    assert result["stage_ms"]["queue"] == pytest.approx({"p50": 2.0, "p95": 92.0, "p99": 100.0})
    assert result["latency_ms"]["p50"] == pytest.approx(200.0)
    assert (result["drops"], result["mean_batch_size"]) == (3, 2.0)
    assert (result["frame_bytes_mean"], result["memory_bytes_per_session"]) == (1.0, 15.0)


def test_a_frame_that_failed_is_no_figure() -> None:
    with pytest.raises(EngineError, match="a frame failed: too large"):
        sum_up(measurement_of(Answer(error="too large")), Wire.GRPC, FORMAT, FRAMES, 1)
    with pytest.raises(UnavailableError, match="no frame was answered in 2 seconds"):
        sum_up(measurement_of(), Wire.GRPC, FORMAT, FRAMES, 1)


def test_percentiles_lie_between_neighbours() -> None:
    hundred = [n / 1000 for n in range(101)]
    assert percentiles_ms(reversed(hundred)) == pytest.approx({"p50": 50, "p95": 95, "p99": 99})
    assert percentiles_ms([0.002]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0}


@pytest.mark.parametrize(
    ("capacity", "limit", "found"), [(0, 64, 0), (1, 64, 1), (11, 64, 11), (500, 64, 64), (5, 5, 5)]
)
async def test_finds_the_largest_number_of_sessions(capacity: int, limit: int, found: int) -> None:
    tried: list[int] = []

    async def measure(num_streams: int) -> ServiceResult:
        tried.append(num_streams)
        result = sum_up(measurement_of(Answer(STAGES, 1)), Wire.GRPC, FORMAT, FRAMES, num_streams)
        result["drops"] = 0
        result["latency_ms"]["p95"] = 50.0 if num_streams <= capacity else 150.0
        return result

    result = await find_largest(measure, 100.0, limit)
    objective = result["objective"]
    assert objective["streams"] == found
    assert result["streams"] == max(found, 1)
    assert [trial["streams"] for trial in objective["trials"]] == sorted(set(tried))
    assert len(tried) == len(set(tried)), "no number is measured twice"
    assert max(tried) <= limit


async def test_dropped_frames_miss_the_objective() -> None:
    async def measure(num_streams: int) -> ServiceResult:
        return sum_up(measurement_of(Answer(STAGES, 1)), Wire.GRPC, FORMAT, FRAMES, num_streams)

    result = await find_largest(measure, 1000.0, 8)
    assert result["objective"]["streams"] == 0
