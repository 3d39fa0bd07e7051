from pathlib import Path

from segstream.doors import tickets
from segstream.doors.keys import Limits, create_key
from segstream.doors.redaction import redacted


def test_secrets_are_taken_out_of_texts(tmp_path: Path) -> None:
    key, record = create_key(tmp_path / "keys.json", "", Limits())
    ticket = tickets.issue(record, "clip")
    text = (
        f"< Authorization: Bearer {key}\n< bearer.{key}, x?ticket={ticket}&y redis://:pw@host:1/0"
    )
    assert redacted(text) == (
        "< Authorization: Bearer [hidden]\n< bearer.[hidden], x?ticket=[hidden]&y "
        "redis://[hidden]@host:1/0"
    )


def test_other_texts_stay_as_they_are() -> None:
    text = "frame 3 of session a@b at http://127.0.0.1:8080/v1/clips and 0123456789ab@front:left"
    assert redacted(text) == text
