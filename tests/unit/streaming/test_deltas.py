"""Label maps told by what has changed: the client's side and the service's, whatever gets lost."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segstream.api.grpc_messages import config_from_pb, frame_from_pb, ready_to_pb, result_to_pb
from segstream.client import FrameResult, IdSpace, ImageEncoding, LabelMapEncoding
from segstream.client.messages import StreamOptions
from segstream.client.protocol import SessionProtocol
from segstream.label_sets import CAMVID
from segstream.media.images import Image, encode_image
from segstream.media.label_maps import in_id_space
from segstream.streaming import Frame, Session, SessionConfig, SessionEndReason
from segstream.streaming.recent_results import MAX_RESULTS
from segstream.v1 import segmentation_pb2 as pb
from tests.unit.streaming.fakes import (
    FakeSpillStore,
    Service,
)
from tests.unit.streaming.test_session import encoded

HEIGHT, WIDTH = 12, 16
DELTA = SessionConfig(label_map_encoding=LabelMapEncoding.DELTA, session_id="a")


class Event(Enum):
    """What may happen to a stream."""

    FRAME = auto()  # is sent and answered, the answer not yet read
    SMALL_CHANGE = auto()  # as FRAME, of nearly the image before
    CORRUPT_FRAME = auto()
    READ = auto()  # an answer reaches the client
    BREAK = auto()  # answers on their way are lost; the session goes on where it was
    HAND_OVER = auto()  # the replica shuts down, the session goes on elsewhere
    CRASH = auto()  # the replica is gone; of its memory only the log of frames is left
    AMNESIA = auto()  # nothing is left of the session but what its client has
    FORGET = auto()  # the next frame names no label map
    BLUFF = auto()  # the next frame names one that never was


@dataclass
class Stream:
    """A client and whatever replica it is with, joined without a network."""

    id_space: IdSpace
    protocol: SessionProtocol = field(init=False)
    redis: FakeSpillStore = field(default_factory=FakeSpillStore)
    images: list[Image] = field(default_factory=list)
    results: dict[int, FrameResult] = field(default_factory=dict)
    answers: deque[pb.StreamSegmentResponse] = field(default_factory=deque)
    named: int | None = None
    num_corrupt: int = 0

    def __post_init__(self) -> None:
        self.protocol = SessionProtocol(
            "nowhere",
            StreamOptions(
                label_map_encoding=LabelMapEncoding.DELTA,
                frame_encoding=ImageEncoding.RAW_RGB,
                id_space=self.id_space,
                wants_confidence=True,
            ),
        )
        self.service = Service(redis=self.redis)
        self.rng = np.random.default_rng(0)

    async def open(self) -> None:
        config = config_from_pb(self.protocol.config_request())
        self.opened: AbstractAsyncContextManager[Session] = self.service.open(config)
        self.session = await self.opened.__aenter__()
        ready = ready_to_pb(self.session).ready
        self.protocol.accept_ready(ready)
        for request in self.protocol.resend(ready.next_frame_index):
            await self.ask(request)

    async def close(self, reason: SessionEndReason) -> None:
        self.answers.clear()
        self.session.stream.end(reason)
        await self.opened.__aexit__(None, None, None)

    async def ask(self, request: pb.StreamSegmentRequest) -> None:
        result = await self.session.segment(frame_from_pb(request))
        self.answers.append(result_to_pb(result))

    def read(self) -> None:
        if self.answers:
            result = self.protocol.accept(self.answers.popleft())
            if result is not None:
                self.results[result.frame_index] = result

    async def send(self, image: Image, named: int | None = -1) -> None:
        frame = self.protocol.encode(image)
        self.protocol.take(frame)
        self.images.append(image)
        request = self.protocol.frame_request(frame)
        if named != -1:
            request.frame.ClearField("held_frame_index")
            if named is not None:
                request.frame.held_frame_index = named
        await self.ask(request)

    def new_image(self) -> Image:
        return self.rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

    def changed_image(self) -> Image:
        image = self.images[-1].copy() if self.images else self.new_image()
        image[2:4, 3:5] = self.rng.integers(0, 256, 3, np.uint8)
        return image

    async def happen(self, event: Event) -> None:
        match event:
            case Event.FRAME:
                await self.send(self.new_image())
            case Event.SMALL_CHANGE:
                await self.send(self.changed_image())
            case Event.FORGET:
                await self.send(self.changed_image(), named=None)
            case Event.BLUFF:
                await self.send(self.changed_image(), named=2**60)
            case Event.CORRUPT_FRAME:
                await self.session.segment(Frame(2**61, None, b"GIF89a"))
            case Event.READ:
                self.read()
            case Event.BREAK:
                await self.close(SessionEndReason.CLIENT_GONE)
                await self.open()
            case Event.HAND_OVER | Event.CRASH | Event.AMNESIA:
                await self.move(event)

    async def move(self, event: Event) -> None:
        is_ordered = event is Event.HAND_OVER
        reason = SessionEndReason.SHUTDOWN if is_ordered else SessionEndReason.CLIENT_GONE
        await self.close(reason)
        await self.service.spill_tier.flush()
        self.old.append(self.service)
        if event is Event.AMNESIA:
            self.redis.snapshots.clear()
            self.redis.logged.clear()
        self.service = Service(redis=self.redis)
        await self.open()

    old: list[Service] = field(default_factory=list)

    async def end(self) -> None:
        while self.answers:
            self.read()
        await self.close(SessionEndReason.CLIENT_CLOSED)
        for service in (*self.old, self.service):
            await service.segmenter.drain(10)

    def check(self) -> None:
        assert sorted(self.results) == list(range(len(self.images)))
        for index, image in enumerate(self.images):
            train_ids = image[:, :, 0] % CAMVID.num_classes
            expected = in_id_space(train_ids, self.id_space, CAMVID)
            np.testing.assert_array_equal(self.results[index].label_map, expected)
            np.testing.assert_array_equal(self.results[index].confidence, image[:, :, 1])


async def live(id_space: IdSpace, events: Sequence[Event]) -> Stream:
    stream = Stream(id_space)
    await stream.open()
    for event in events:
        await stream.happen(event)
    await stream.end()
    stream.check()
    return stream


# Read often, else few label maps would ever be held.
EVENTS = st.one_of(
    st.sampled_from(Event), st.just(Event.READ), st.just(Event.READ), st.just(Event.SMALL_CHANGE)
)


@given(st.sampled_from(IdSpace), st.lists(EVENTS, max_size=24))
@settings(max_examples=40, deadline=None)
def test_whatever_is_lost_the_label_maps_are_those_that_were_made(
    id_space: IdSpace, events: list[Event]
) -> None:
    asyncio.run(live(id_space, events))


async def bases(*events: Event) -> list[int | None]:
    stream = await live(IdSpace.TRAIN_ID, events)
    return [stream.results[index].base_frame_index for index in sorted(stream.results)]


SEND, READ = Event.SMALL_CHANGE, Event.READ


async def test_each_label_map_is_told_against_the_last_one_that_was_read() -> None:
    assert await bases(SEND, READ, SEND, SEND, READ, SEND) == [None, 0, 0, 1]


async def test_a_label_map_unlike_the_one_held_comes_whole() -> None:
    assert await bases(SEND, READ, Event.FRAME, READ, SEND) == [None, None, 1]


async def test_a_client_that_names_none_or_one_that_never_was_gets_whole_ones() -> None:
    assert await bases(SEND, READ, Event.FORGET, Event.BLUFF, SEND) == [None, None, None, 0]


async def test_what_was_lost_in_a_break_comes_again_and_whole() -> None:
    assert await bases(SEND, READ, SEND, Event.BREAK, READ, SEND) == [None, None, 1]


async def test_deltas_go_on_where_the_session_was_handed_over() -> None:
    assert await bases(SEND, READ, Event.HAND_OVER, SEND) == [None, 0]


async def test_after_a_crash_the_first_label_map_comes_whole() -> None:
    # One of the answers read may be that of a frame that was sent again for the memory only.
    assert await bases(SEND, READ, Event.CRASH, SEND, READ, READ, SEND) == [None, None, 1]
    assert await bases(SEND, READ, Event.AMNESIA, SEND) == [None, None]


async def test_a_label_map_that_was_forgotten_is_no_base(service: Service) -> None:
    async with service.open(DELTA) as session:
        for index in range(MAX_RESULTS + 1):
            await session.segment(busy_frame(index))
        oldest = encoded(await session.segment(busy_frame(100, held=0)))
        newest = encoded(await session.segment(busy_frame(101, held=MAX_RESULTS)))
    assert oldest.base_frame_index is None
    assert newest.base_frame_index == MAX_RESULTS
    assert len(newest.data) < len(oldest.data) / 4


def busy_frame(index: int, held: int | None = None) -> Frame:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = encode_image(image, ImageEncoding.PNG)
    return Frame(index, None, data, held_frame_index=held)
