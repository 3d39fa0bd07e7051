import time
from datetime import UTC, datetime

import pytest

from segstream.doors import tickets
from segstream.doors.keys import KeyRecord, digest_of

RECORD = KeyRecord(id="0" * 12, sha256=digest_of("a"), created_at=datetime.now(UTC))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_a_ticket_is_for_its_subject_and_its_key(now: list[float]) -> None:
    ticket = tickets.issue(RECORD, "clip")
    assert tickets.key_id_of(ticket) == RECORD.id
    assert tickets.is_valid(ticket, RECORD, "clip")
    assert not tickets.is_valid(ticket, RECORD, "another")
    renewed = RECORD.model_copy(update={"sha256": digest_of("b")})
    assert not tickets.is_valid(ticket, renewed, "clip")


def test_a_ticket_holds_for_an_hour_at_least_and_two_at_most(now: list[float]) -> None:
    ticket = tickets.issue(RECORD, "clip")
    now[0] += 3600
    assert tickets.is_valid(ticket, RECORD, "clip")
    now[0] += 3600
    assert not tickets.is_valid(ticket, RECORD, "clip")


@pytest.mark.parametrize("place", [13, -1])
def test_a_ticket_that_was_changed_is_none(now: list[float], place: int) -> None:
    letters = list(tickets.issue(RECORD, "clip"))
    letters[place] = "1" if letters[place] != "1" else "2"
    assert not tickets.is_valid("".join(letters), RECORD, "clip")


def test_what_is_no_ticket_has_no_key() -> None:
    assert not tickets.is_valid("", RECORD, "clip")
    assert tickets.key_id_of("../../etc/passwd") == ""
