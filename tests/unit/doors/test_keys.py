import json
from pathlib import Path
from typing import Any

import pytest

from segstream.doors.keys import (
    KEY,
    Limits,
    create_key,
    digest_of,
    read_records,
    replace_key,
    revoke_key,
)
from segstream.errors import InvalidInputError, NotFoundError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_the_file_holds_no_key(path: Path) -> None:
    key, record = create_key(path, "camera", Limits(max_sessions=3))
    found = KEY.fullmatch(key)
    assert found is not None
    assert found["id"] == record.id
    secret = key.rpartition(f"{record.id}_")[2]
    assert secret not in path.read_text()
    assert read_records(path) == {record.id: record}
    assert record.sha256 == digest_of(key)
    assert record.limits.max_sessions == 3


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    create_key(path, "", Limits())
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    create_key(path, "", Limits())
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_keys_differ(path: Path) -> None:
    keys = {create_key(path, "", Limits())[0] for _ in range(10)}
    assert len(keys) == len(read_records(path)) == 10


def test_a_key_is_revoked(path: Path) -> None:
    _, first = create_key(path, "first", Limits())
    _, second = create_key(path, "second", Limits())
    assert revoke_key(path, first.id) == first
    assert list(read_records(path)) == [second.id]
    with pytest.raises(NotFoundError, match=f"key '{first.id}' is not in"):
        revoke_key(path, first.id)


def test_a_key_is_renewed(path: Path) -> None:
    old, record = create_key(path, "camera", Limits(max_sessions=1))
    new, renewed = replace_key(path, record.id)
    assert new != old
    assert (renewed.id, renewed.name, renewed.limits) == (record.id, "camera", record.limits)
    assert read_records(path)[record.id].sha256 == digest_of(new)


RECORD = {"id": "0" * 12, "sha256": "0" * 64, "created_at": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is no file of keys"),
        ("[]", "is no file of keys"),
        ({"keys": [RECORD | {"id": "../x"}]}, "keys.0.id"),
        ({"keys": [RECORD | {"sha256": "abc"}]}, "keys.0.sha256"),
        ({"keys": [RECORD | {"limits": {"max_session": 1}}]}, "keys.0.limits.max_session"),
        ({"keys": [RECORD | {"limits": {"max_sessions": 0}}]}, "keys.0.limits.max_sessions"),
        ({"keys": [RECORD, RECORD]}, "two keys of the same id"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(path: Path, content: Any, told: str) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InvalidInputError, match=told) as refused:
        read_records(path)
    assert refused.value.field == "api_keys"


def test_a_bad_file_is_not_told_word_for_word(path: Path) -> None:
    """Somebody may have written the key itself where its digest belongs."""
    path.write_text(json.dumps({"keys": [RECORD | {"sha256": "segstream_secret"}]}))
    with pytest.raises(InvalidInputError) as refused:
        read_records(path)
    assert "segstream_secret" not in refused.value.message


def test_a_file_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"No such file.*segstream keys create"):
        read_records(path)
