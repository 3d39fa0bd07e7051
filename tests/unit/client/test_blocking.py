import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from segstream.client import (
    ChannelOrder,
    Client,
    Frame,
    FramePolicy,
    IdSpace,
    ImageEncoding,
    LabelMapEncoding,
    SessionEnd,
    SessionEndReason,
)
from segstream.client.messages import StreamKeywords
from segstream.errors import (
    AlreadyExistsError,
    EngineError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    SegstreamError,
    UnavailableError,
)
from segstream.label_sets import CAMVID
from segstream.media.images import Image
from segstream.media.label_maps import label_map_digest
from segstream.v1 import segmentation_pb2 as pb
from tests.unit.client.fake_service import (
    MEMORY_LENGTH,
    FakeService,
    images,
    label_map_of,
    serving_in_thread,
)

RAW = ImageEncoding.RAW_RGB


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def client(fake: FakeService) -> Iterator[Client]:
    with serving_in_thread(fake) as served, Client(served.address) as client:
        yield client


def wait_until_cancelled(fake: FakeService) -> None:
    deadline = time.monotonic() + 5
    while not fake.was_cancelled and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fake.was_cancelled


def test_results_come_in_order_and_belong_to_their_frames(client: Client) -> None:
    frames = images(20)
    with client.stream(frame_encoding=RAW) as session:
        results = list(session.segment(frames))
    assert [result.frame_index for result in results] == list(range(20))
    for frame, result in zip(frames, results, strict=True):
        np.testing.assert_array_equal(result.label_map, label_map_of(frame))
        assert result.label_map.dtype == np.uint8
        assert result.digest == label_map_digest(result.label_map)
        assert result.error is None
        assert result.num_memory_frames == min(MEMORY_LENGTH, result.frame_index)
        assert result.timings.encode_seconds == 0.25
        assert result.timings.batch_size == 1
        assert result.round_trip_seconds > 0
    assert session.end == SessionEnd(SessionEndReason.CLIENT_CLOSED, 20)


def test_the_session_tells_what_it_runs_on(client: Client) -> None:
    with client.stream() as session:
        ready = session.ready
    assert ready.session_id
    assert (ready.model, ready.epoch) == ("default", 1)
    assert ready.memory_length == MEMORY_LENGTH
    assert ready.label_set is CAMVID


def test_the_options_reach_the_service(client: Client, fake: FakeService) -> None:
    with client.stream(
        model="camvid",
        session_id="cam:1",
        label_map_encoding=LabelMapEncoding.RAW,
        id_space=IdSpace.LABEL_ID,
        max_working_height=360,
        frame_policy=FramePolicy.LATEST,
        has_scene_cut_guard=True,
        wants_confidence=True,
    ) as session:
        assert session.ready.session_id == "cam:1"
    assert fake.configs == [
        pb.SessionConfig(
            session_id="cam:1",
            model="camvid",
            label_map_encoding=pb.LABEL_MAP_ENCODING_RAW,
            id_space=pb.ID_SPACE_LABEL_ID,
            max_working_height=360,
            frame_policy=pb.FRAME_POLICY_LATEST,
            has_scene_cut_guard=True,
            wants_confidence=True,
        )
    ]
    assert fake.headers[0]["x-session-id"] == "cam:1"


def test_the_looks_of_an_overlay_reach_the_service(client: Client, fake: FakeService) -> None:
    with client.stream(
        label_map_encoding=LabelMapEncoding.OVERLAY_JPEG, overlay_opacity=0.0, overlay_quality=7
    ):
        pass
    assert fake.configs[0].overlay == pb.OverlayStyle(opacity=0.0, quality=7)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"overlay_opacity": -0.1}, "overlay_opacity"),
        ({"overlay_quality": 0}, "overlay_quality"),
        (
            {"label_map_encoding": LabelMapEncoding.OVERLAY_JPEG, "verify_digests": True},
            "label_map_encoding",
        ),
    ],
)
def test_looks_that_cannot_be_are_refused(
    client: Client, options: StreamKeywords, field: str
) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        client.stream(**options)
    assert refusal.value.field == field


def test_every_session_has_an_id_that_a_proxy_can_read(client: Client, fake: FakeService) -> None:
    with client.stream() as one, client.stream() as other:
        ids = [one.ready.session_id, other.ready.session_id]
    assert ids[0] != ids[1]
    assert [headers["x-session-id"] for headers in fake.headers] == ids
    assert [config.session_id for config in fake.configs] == ids


@pytest.mark.parametrize("encoding", ImageEncoding)
def test_frames_travel_in_every_encoding(
    client: Client, fake: FakeService, encoding: ImageEncoding
) -> None:
    with client.stream(frame_encoding=encoding) as session:
        (result,) = session.segment([Frame(images(1)[0] + 3, timestamp_us=-7)])
    assert result.timestamp_us == -7
    np.testing.assert_array_equal(result.label_map, 3)
    assert (fake.frames[0].width, fake.frames[0].height) == (6, 4)


@pytest.mark.parametrize("encoding", ImageEncoding)
def test_images_of_opencv_travel_as_rgb(
    client: Client, fake: FakeService, encoding: ImageEncoding
) -> None:
    [image] = images(1)
    image[:, :, 0] = 200
    for pixels, order in ((image, ChannelOrder.RGB), (image[:, :, ::-1], ChannelOrder.BGR)):
        with client.stream(frame_encoding=encoding, channel_order=order) as session:
            assert all(result.error is None for result in session.segment([pixels]))
    assert fake.frames[0].data == fake.frames[1].data


@pytest.mark.parametrize("encoding", [each for each in LabelMapEncoding if each.holds_ids])
def test_label_maps_travel_in_every_encoding(client: Client, encoding: LabelMapEncoding) -> None:
    with client.stream(
        label_map_encoding=encoding, verify_digests=True, frame_encoding=RAW
    ) as session:
        results = list(session.segment(images(3)))
    assert [int(result.label_map[0, 0]) for result in results] == [0, 1, 2]


def test_the_window_is_used_and_kept(client: Client, fake: FakeService) -> None:
    fake.delay_seconds = 0.01
    num_taken = num_given = 0

    def frames() -> Iterator[Image]:
        nonlocal num_taken
        for image in images(12):
            num_taken += 1
            assert num_taken - num_given <= 3
            yield image

    with client.stream(frame_encoding=RAW) as session:
        for _ in session.segment(frames(), max_in_flight=3):
            num_given += 1
    assert num_given == 12
    assert fake.most_in_flight == 3


def test_a_window_of_one_answers_each_frame_before_the_next(
    client: Client, fake: FakeService
) -> None:
    with client.stream(frame_encoding=RAW) as session:
        assert len(list(session.segment(images(5), max_in_flight=1))) == 5
    assert fake.most_in_flight == 1


def test_a_window_of_none_is_refused(client: Client) -> None:
    with client.stream() as session, pytest.raises(InvalidInputError, match="max_in_flight is 0"):
        list(session.segment(images(1), max_in_flight=0))


def test_a_session_goes_on_over_several_calls(client: Client, fake: FakeService) -> None:
    fake.next_frame_index = 40
    with client.stream(frame_encoding=RAW) as session:
        first = [result.frame_index for result in session.segment(images(2))]
        second = [result.frame_index for result in session.segment(images(3))]
    assert (first, second) == ([40, 41], [42, 43, 44])


def test_what_a_caller_left_behind_is_dropped(client: Client) -> None:
    with client.stream(frame_encoding=RAW) as session:
        for result in session.segment(images(9)):
            if result.frame_index == 1:
                break
        rest = list(session.segment([images(8)[7]]))
    assert [int(result.label_map[0, 0]) for result in rest] == [7]


def test_sessions_run_side_by_side(client: Client) -> None:
    with client.stream(frame_encoding=RAW) as one, client.stream(frame_encoding=RAW) as other:
        pairs = zip(one.segment(images(6)), other.segment(images(6)), strict=True)
        assert all(left.digest == right.digest for left, right in pairs)


def test_the_error_of_a_frame_leaves_the_stream_running(client: Client, fake: FakeService) -> None:
    fake.frame_errors[1] = pb.FrameError(code=3, message="too small", field="frame.data")
    with client.stream(frame_encoding=RAW) as session:
        results = list(session.segment(images(3)))
    error = results[1].error
    assert isinstance(error, InvalidInputError)
    assert (error.message, error.field) == ("frame 1: too small", "frame.data")
    with pytest.raises(InvalidInputError, match="too small"):
        _ = results[1].label_map
    assert results[2].label_map.shape == (4, 6)


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInputError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.ALREADY_EXISTS, AlreadyExistsError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ExhaustedError),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError),
        (grpc.StatusCode.CANCELLED, UnavailableError),
        (grpc.StatusCode.INTERNAL, EngineError),
    ],
)
def test_a_refused_session_raises_the_error_of_its_status(
    client: Client,
    fake: FakeService,
    status: grpc.StatusCode,
    error_type: type[SegstreamError],
) -> None:
    fake.refuse_session = (status, "model is 'x'; there is none")
    with pytest.raises(SegstreamError, match="model is 'x'; there is none") as refusal:
        client.stream(model="x").__enter__()
    assert type(refusal.value) is error_type


def test_an_unknown_frame_status_is_an_engine_error(client: Client, fake: FakeService) -> None:
    fake.frame_errors[0] = pb.FrameError(code=999, message="?")
    with client.stream(frame_encoding=RAW) as session:
        (result,) = session.segment(images(1))
    assert isinstance(result.error, EngineError)


def test_an_error_in_mid_stream_ends_it_after_the_results_before_it(
    client: Client, fake: FakeService
) -> None:
    fake.fail_at[2] = (grpc.StatusCode.INTERNAL, "the engine is lost")
    seen: list[int] = []
    with client.stream(frame_encoding=RAW) as session:
        with pytest.raises(EngineError, match="INTERNAL: the engine is lost"):
            seen.extend(result.frame_index for result in session.segment(images(9)))
        with pytest.raises(EngineError):
            list(session.segment(images(1)))


def test_a_service_that_vanishes_is_unavailable(fake: FakeService) -> None:
    with serving_in_thread(fake) as served, Client(served.address) as client:
        with client.stream(frame_encoding=RAW) as session:
            results = session.segment(images(100))
            next(results)
            served.vanish()
            with pytest.raises(UnavailableError, match=f"segstream at {served.address}"):
                list(results)
        assert session.end is None


def test_a_service_that_shuts_down_in_order_says_so(client: Client, fake: FakeService) -> None:
    fake.end_at = 2
    with (
        client.stream(frame_encoding=RAW) as session,
        pytest.raises(UnavailableError, match="ended the session: shutdown"),
    ):
        list(session.segment(images(5)))
    assert session.end == SessionEnd(SessionEndReason.SHUTDOWN, 2)


def test_nobody_there() -> None:
    with (
        Client("127.0.0.1:1", connect_timeout_seconds=0.2) as client,
        pytest.raises(UnavailableError, match=r"^no segstream service at 127\.0\.0\.1:1$"),
    ):
        client.stream().__enter__()


def test_leaving_early_cancels_the_call(client: Client, fake: FakeService) -> None:
    fake.silent_from = 2
    started_at = time.monotonic()
    with client.stream(frame_encoding=RAW) as session:
        for result in session.segment(images(9)):
            if result.frame_index == 1:
                break
    assert time.monotonic() - started_at < 2
    wait_until_cancelled(fake)


def test_an_error_of_the_caller_cancels_the_call(client: Client, fake: FakeService) -> None:
    with pytest.raises(ZeroDivisionError), client.stream():
        _ = 1 / 0
    wait_until_cancelled(fake)


def test_an_error_of_the_frames_reaches_the_caller(client: Client) -> None:
    def frames() -> Iterator[Image]:
        yield images(1)[0]
        raise OSError("the camera is gone")

    with (
        client.stream(frame_encoding=RAW) as session,
        pytest.raises(OSError, match="the camera is gone"),
    ):
        list(session.segment(frames()))


def test_closing_the_client_ends_its_sessions(client: Client, fake: FakeService) -> None:
    with client.stream(frame_encoding=RAW) as session:
        client.close()
        with pytest.raises(UnavailableError):
            list(session.segment(images(2)))


def test_closing_the_client_ends_a_session_in_the_middle(client: Client) -> None:
    with client.stream(frame_encoding=RAW) as session:
        results = session.segment(images(20), max_in_flight=2)
        next(results)
        client.close()
        with pytest.raises(UnavailableError):
            list(results)


def test_a_closed_client_opens_no_session(client: Client) -> None:
    client.close()
    with pytest.raises(UnavailableError, match="was closed"), client.stream():
        pass


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (Frame(images(1)[0], timestamp_us=2**63), "timestamp_us"),
        (Frame(images(1)[0], deadline_ms=-1), "deadline_ms"),
        (Frame(images(1)[0], deadline_ms=2**32), "deadline_ms"),
    ],
)
def test_numbers_that_the_wire_cannot_hold_are_refused(
    client: Client, frame: Frame, field: str
) -> None:
    with (
        client.stream(frame_encoding=RAW) as session,
        pytest.raises(InvalidInputError, match=field) as refusal,
    ):
        list(session.segment([frame]))
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 6, 3), np.float32), "must be a uint8 array, got float32"),
        (np.zeros((4, 6), np.uint8), r"must be \(H, W, 3\), got \(4, 6\)"),
        (np.zeros((0, 6, 3), np.uint8), r"got \(0, 6, 3\)"),
        ("clip.mp4", "must be a uint8 array, got str"),
    ],
)
def test_what_is_no_frame_is_refused_before_it_is_sent(
    client: Client, fake: FakeService, frame: Image, message: str
) -> None:
    with client.stream(frame_encoding=RAW) as session:
        with pytest.raises(InvalidInputError, match=message):
            list(session.segment([frame]))
        assert [result.frame_index for result in session.segment(images(1))] == [0]
    assert len(fake.frames) == 1


def test_a_frame_too_large_for_a_message_is_refused(client: Client) -> None:
    frame = np.zeros((4800, 4800, 3), np.uint8)
    with (
        client.stream(frame_encoding=RAW) as session,
        pytest.raises(InvalidInputError, match="4800x4800"),
    ):
        list(session.segment([frame]))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (StreamKeywords(session_id="a b"), "session_id"),
        (StreamKeywords(session_id="x" * 129), "session_id"),
        (StreamKeywords(max_working_height=-1), "max_working_height"),
        (StreamKeywords(max_working_height=2**32), "max_working_height"),
        (StreamKeywords(resume_timeout_seconds=-1), "resume_timeout_seconds"),
        (StreamKeywords(session_id="a", resume_from=2**64), "resume_from"),
        (StreamKeywords(jpeg_quality=0), "jpeg_quality"),
        (StreamKeywords(verify_digests=True, id_space=IdSpace.LABEL_ID), "id_space"),
    ],
)
def test_bad_options_are_refused(options: StreamKeywords, field: str) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidInputError) as refusal:
        client.stream(**options)
    assert refusal.value.field == field


def test_false_digests_are_found_only_when_asked(client: Client, fake: FakeService) -> None:
    fake.false_digests = True
    with client.stream(frame_encoding=RAW) as session:
        assert len(list(session.segment(images(2)))) == 2
    with (
        client.stream(verify_digests=True, frame_encoding=RAW) as session,
        pytest.raises(EngineError, match="label map of frame 0 belies its digest"),
    ):
        list(session.segment(images(2)))


def test_a_broken_label_map_is_the_service_s_fault(client: Client, fake: FakeService) -> None:
    fake.broken_label_maps = True
    with (
        client.stream(frame_encoding=RAW) as session,
        pytest.raises(EngineError, match="cannot be read"),
    ):
        list(session.segment(images(1)))


def test_an_answer_to_another_frame_is_found(client: Client, fake: FakeService) -> None:
    fake.skipped = (1,)
    with (
        client.stream(frame_encoding=RAW) as session,
        pytest.raises(EngineError, match="answered frame 2 where frame 1 was awaited"),
    ):
        list(session.segment(images(5)))


def test_a_service_that_starts_with_something_else_is_refused(
    client: Client, fake: FakeService
) -> None:
    fake.first_message = pb.StreamSegmentResponse(result=pb.FrameResult())
    with pytest.raises(EngineError, match="sent result out of turn"):
        client.stream().__enter__()


def test_unknown_classes_have_no_label_set(client: Client, fake: FakeService) -> None:
    fake.class_names = ("cat", "dog")
    with client.stream() as session, pytest.raises(NotFoundError, match=r"2 classes \(cat, dog\)"):
        _ = session.ready.label_set
