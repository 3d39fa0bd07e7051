import asyncio
import time

import pytest

from segstream.doors.accounts import Account, key_id_of, session_id_of
from segstream.doors.keys import Limits
from segstream.errors import ExhaustedError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved on."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    async def sleep(seconds: float) -> None:
        now[0] += max(seconds, 1e-6)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return now


def test_an_account_without_limits_has_none(clock: list[float]) -> None:
    account = Account("id")
    account.num_streams = 1000
    account.check_sessions()
    for _ in range(1000):
        account.take_frame()


def test_frames_are_refused_beyond_a_seconds_worth_and_told_when_to_come_back(
    clock: list[float],
) -> None:
    reached: list[str] = []
    account = Account("id", Limits(max_frames_per_second=4), reached.append)
    for _ in range(4):
        account.take_frame()
    with pytest.raises(ExhaustedError, match="4 frames per second") as refused:
        account.take_frame()
    assert refused.value.retry_after_seconds == pytest.approx(0.25)
    assert reached == ["frames_per_second"]
    clock[0] += 0.26
    account.take_frame()
    with pytest.raises(ExhaustedError):
        account.take_frame()


def test_a_rate_below_one_lets_single_frames_through(clock: list[float]) -> None:
    account = Account("id", Limits(max_frames_per_second=0.5))
    account.take_frame()
    with pytest.raises(ExhaustedError) as refused:
        account.take_frame()
    assert refused.value.retry_after_seconds == pytest.approx(2)


async def test_streams_wait_for_their_frames(clock: list[float]) -> None:
    reached: list[str] = []
    account = Account("id", Limits(max_frames_per_second=10), reached.append)
    began = clock[0]
    for _ in range(110):
        await account.wait_for_frame()
        account.frames.spend()
    assert clock[0] - began == pytest.approx(10, rel=1e-3)
    assert set(reached) == {"frames_per_second"}


async def test_what_streams_took_at_once_is_paid_back(clock: list[float]) -> None:
    account = Account("id", Limits(max_frames_per_second=1))
    began = clock[0]
    for _ in range(5):
        account.frames.spend()
    await account.wait_for_frame()
    assert clock[0] - began == pytest.approx(5, rel=1e-3)


def test_limits_change_while_streams_are_open(clock: list[float]) -> None:
    account = Account("id", Limits(max_sessions=2))
    account.num_streams = 2
    with pytest.raises(ExhaustedError, match="2 sessions of this API key"):
        account.check_sessions()
    account.change_limits(Limits(max_sessions=3, max_frames_per_second=2))
    account.check_sessions()
    assert account.frames.rate == 2


def test_names_of_sessions_tell_their_key() -> None:
    scoped = Account("0123456789ab").scoped("front:left")
    assert (key_id_of(scoped), session_id_of(scoped)) == ("0123456789ab", "front:left")
    assert Account("other").scoped("front:left") != scoped
    nobodys = Account().scoped("front:left")
    assert nobodys == "front:left"
    assert (key_id_of(nobodys), session_id_of(nobodys)) == ("", "front:left")
