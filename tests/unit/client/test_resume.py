"""The client goes on with its session: no frame lost, none twice, the memory what it was."""

import itertools
from collections import OrderedDict

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segstream.client import Client, StreamOptions
from segstream.client.protocol import SessionProtocol
from segstream.client.resume import RetryPolicy, may_resume
from segstream.errors import InvalidInputError, NotFoundError, UnavailableError
from segstream.v1 import segmentation_pb2 as pb
from segstream.wire import RETRY_HINT
from tests.unit.client.fake_service import MEMORY_LENGTH, FakeService, images, serving_in_thread

NUM_FRAMES = 12


class ModelService:
    """A service as far as memory goes: a frame's answer is which frames its memory holds."""

    def __init__(self) -> None:
        self.epoch = 0
        self.memory: list[int] = []
        self.next_frame_index = 0
        self.answers: OrderedDict[int, pb.FrameResult] = OrderedDict()

    def open(self, request: pb.StreamSegmentRequest, what_is_left: str) -> pb.SessionReady:
        """Go on with all there was, with the frames up to the client's last answer, or nothing."""
        self.epoch += 1
        if what_is_left == "frames":
            known = [i for i in self.memory if i < request.config.resume.next_frame_index]
            self.memory = known if len(known) == MEMORY_LENGTH else []
            self.next_frame_index = self.memory[-1] + 1 if self.memory else 0
            self.answers.clear()
        elif what_is_left == "nothing":
            self.memory, self.next_frame_index = [], 0
            self.answers.clear()
        self.first_new_index = self.next_frame_index
        return pb.SessionReady(
            epoch=self.epoch,
            next_frame_index=self.next_frame_index,
            memory_length=MEMORY_LENGTH,
        )

    def answer(self, frame: pb.Frame) -> pb.FrameResult:
        if frame.index < self.first_new_index:
            again = pb.FrameResult()
            again.CopyFrom(self.answers[frame.index])
            again.is_duplicate = True
            return again
        assert frame.index >= self.next_frame_index, "processed twice"
        depth = ",".join(map(str, self.memory))
        result = pb.FrameResult(frame_index=frame.index, num_memory_frames=len(self.memory))
        if frame.is_memorise_only:
            result.skipped.is_memorised = True
        else:
            label_map = np.zeros((1, 1), np.uint8).tobytes()
            result.label_map.CopyFrom(
                pb.LabelMap(
                    encoding=pb.LABEL_MAP_ENCODING_RAW,
                    width=1,
                    height=1,
                    data=label_map,
                    digest=depth.encode(),
                )
            )
            self.answers[frame.index] = result
        self.memory = [*self.memory, frame.index][-MEMORY_LENGTH:]
        self.next_frame_index = frame.index + 1
        return result


BREAKS = st.lists(
    st.tuples(
        st.integers(1, 6),  # frames sent before the break
        st.integers(0, 6),  # of them answered by the service
        st.integers(0, 6),  # and their answers received
        st.sampled_from(["everything", "frames", "nothing"]),
    ),
    max_size=8,
)


@given(breaks=BREAKS)
@settings(max_examples=300, deadline=None)
def test_whatever_breaks_every_frame_is_answered_once_over_its_own_memory(
    breaks: list[tuple[int, int, int, str]],
) -> None:
    service = ModelService()
    protocol = SessionProtocol("here", StreamOptions())
    seen: list[tuple[int, bytes]] = []
    numbers = iter(range(NUM_FRAMES))
    plan = iter(breaks)
    what_is_left = "everything"
    while len(seen) < NUM_FRAMES:
        num_sent, num_answered, num_received, next_left = next(
            plan, (NUM_FRAMES, 99, 99, "everything")
        )
        ready = service.open(protocol.config_request(), what_is_left)
        protocol.accept_ready(ready)
        requests = protocol.resend(ready.next_frame_index)
        for _ in itertools.islice(numbers, num_sent):
            protocol.take(frame := pb.Frame())
            requests.append(protocol.frame_request(frame))
        answered = [service.answer(request.frame) for request in requests[:num_answered]]
        for result in answered[:num_received]:
            accepted = protocol.accept(pb.StreamSegmentResponse(result=result))
            if accepted is not None:
                seen.append((accepted.frame_index, accepted.digest))
        what_is_left = next_left
    undisturbed = [
        (i, ",".join(map(str, range(max(0, i - MEMORY_LENGTH), i))).encode())
        for i in range(NUM_FRAMES)
    ]
    assert seen == undisturbed


@pytest.mark.parametrize(
    "status",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL],
)
def test_a_broken_call_is_gone_on_with(status: grpc.StatusCode) -> None:
    fake = FakeService(fail_at={3: (status, "gone")}, fails_once=True)
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream() as session,
    ):
        results = list(session.segment(images(8)))
    assert [result.frame_index for result in results] == list(range(8))
    assert len(session.resumptions) == 1
    assert fake.configs[1].resume.next_frame_index == 3
    assert fake.configs[0].session_id == fake.configs[1].session_id


def test_a_replica_that_shuts_down_is_left_in_order() -> None:
    fake = FakeService(end_at=4, fails_once=True)
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream() as session,
    ):
        results = list(session.segment(images(6)))
    assert [result.frame_index for result in results] == list(range(6))
    assert [each.is_exact for each in session.resumptions] == [True]
    assert session.resumptions[0].seconds > 0


def test_frames_that_the_next_replica_lacks_are_sent_again_for_the_memory_only() -> None:
    fake = FakeService(end_at=5, fails_once=True)
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream() as session,
    ):
        list(session.segment(images(6), max_in_flight=1))
    resent = [(frame.index, frame.is_memorise_only) for frame in fake.frames[6:]]
    assert resent == [(2, True), (3, True), (4, True), (5, False)]


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
def test_a_verdict_is_not_disputed(status: grpc.StatusCode) -> None:
    fake = FakeService(fail_at={1: (status, "no")})
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream() as session,
        pytest.raises(Exception, match="no"),
    ):
        list(session.segment(images(3)))
    assert len(fake.configs) == 1


def test_a_service_that_is_full_for_now_is_tried_again() -> None:
    fake = FakeService(
        fail_at={1: (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")},
        hints=((RETRY_HINT, "1000"),),
        fails_once=True,
    )
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream() as session,
    ):
        results = list(session.segment(images(3)))
    assert [result.frame_index for result in results] == [0, 1, 2]
    assert len(fake.configs) == 2


def test_a_replica_that_lags_behind_hears_no_goodbye() -> None:
    """It would take the end of the requests for the end of the session, and forget it."""
    fake = FakeService(
        fail_at={1: (grpc.StatusCode.UNAVAILABLE, "gone")}, fails_once=True, epochs=(5, 4, 6)
    )
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream() as session,
    ):
        results = list(session.segment(images(3)))
        assert not fake.ended_in_order
    assert [result.frame_index for result in results] == [0, 1, 2]
    assert len(fake.configs) == 3


def test_a_client_that_is_closed_while_its_session_resumes_says_so() -> None:
    fake = FakeService(silent_from=1)
    with serving_in_thread(fake) as served:
        client = Client(served.address)
        with client.stream() as session:
            list(session.segment(images(1)))
            client.close()
            with pytest.raises(UnavailableError):
                list(session.segment(images(1)))


def test_who_does_not_want_to_resume_hears_of_the_break() -> None:
    fake = FakeService(fail_at={1: (grpc.StatusCode.UNAVAILABLE, "gone")}, fails_once=True)
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream(resume_timeout_seconds=0) as session,
        pytest.raises(UnavailableError, match="gone"),
    ):
        list(session.segment(images(3)))


def test_it_gives_up_when_nothing_comes_for_too_long() -> None:
    fake = FakeService(fail_at={1: (grpc.StatusCode.UNAVAILABLE, "gone")})
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream(resume_timeout_seconds=0.3) as session,
        pytest.raises(UnavailableError, match="gone"),
    ):
        list(session.segment(images(3)))
    assert len(fake.configs) > 2


def test_a_program_started_anew_goes_on_where_it_was() -> None:
    fake = FakeService(next_frame_index=7)
    with (
        serving_in_thread(fake) as served,
        Client(served.address) as client,
        client.stream(session_id="cam", resume_from=7) as session,
    ):
        (result,) = session.segment(images(1))
    assert fake.configs[0].resume.next_frame_index == 7
    assert result.frame_index == 7


def test_resuming_needs_a_session() -> None:
    with pytest.raises(InvalidInputError, match="session_id"):
        SessionProtocol("here", StreamOptions(resume_from=3))


def test_a_replica_that_lags_behind_is_not_believed() -> None:
    protocol = SessionProtocol("here", StreamOptions())
    protocol.accept_ready(pb.SessionReady(epoch=5))
    with pytest.raises(UnavailableError, match="epoch 4"):
        protocol.accept_ready(pb.SessionReady(epoch=4))


def test_a_skipped_frame_has_no_label_map() -> None:
    protocol = SessionProtocol("here", StreamOptions())
    protocol.accept_ready(pb.SessionReady(epoch=1))
    protocol.take(frame := pb.Frame())
    protocol.frame_request(frame)
    skipped = pb.SkippedFrame(reason=pb.SKIP_REASON_DEADLINE_PASSED)
    result = protocol.accept(pb.StreamSegmentResponse(result=pb.FrameResult(skipped=skipped)))
    assert result is not None
    assert result.skipped == "deadline_passed"
    with pytest.raises(NotFoundError, match="deadline_passed"):
        _ = result.label_map


def test_pauses_double_and_the_first_try_comes_at_once() -> None:
    policy = RetryPolicy(timeout_seconds=60)
    pauses = [policy.next_pause(UnavailableError("gone")) for _ in range(12)]
    assert pauses[0] == 0.0
    assert all(pause is not None and pause <= 2.0 for pause in pauses)
    assert may_resume(UnavailableError("gone"), SessionProtocol("here", StreamOptions())) is False


@pytest.mark.parametrize("address", ["127.0.0.1:1,nowhere", "127.0.0.1:x,127.0.0.1:2", "", " , "])
def test_addresses_must_be_hosts_and_ports(address: str) -> None:
    with pytest.raises(InvalidInputError, match="host:port"):
        Client(address)


def test_a_list_of_one_address_is_that_address() -> None:
    with (
        serving_in_thread(FakeService()) as served,
        Client(f" {served.address}, ") as client,
        client.stream() as session,
    ):
        assert len(list(session.segment(images(1)))) == 1


def test_several_addresses_are_one_service() -> None:
    one, other = FakeService(), FakeService()
    with (
        serving_in_thread(one) as first,
        serving_in_thread(other) as second,
        Client(f"{first.address},{second.address}") as client,
    ):
        for _ in range(8):
            with client.stream() as session:
                list(session.segment(images(1)))
    assert len(one.configs) + len(other.configs) == 8
    assert one.configs
    assert other.configs
