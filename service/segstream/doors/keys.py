"""API keys, and the file that keeps what is needed to know them again."""

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segstream.errors import InvalidInputError, NotFoundError

KEY: Final = re.compile(r"segstream_(?P<id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}")
"""A key as its holder has it: a public id, then 256 random bits."""

_FIELD: Final = "api_keys"
_NUM_SECRET_BYTES = 32
_NUM_ID_BYTES = 6


class Limits(BaseModel):
    """What one key may use; None: as much as there is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_sessions: Annotated[int, Field(ge=1)] | None = None
    max_frames_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_clip_minutes_per_day: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class KeyRecord(BaseModel):
    """A key as it is stored. Its 256 random bits need no slow hash: they cannot be guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field("", max_length=200)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: datetime
    limits: Limits = Limits()


class _Records(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyRecord, ...] = ()


def digest_of(key: str) -> str:
    """SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def read_records(path: Path) -> dict[str, KeyRecord]:
    """The keys of a file, by id. Raises InvalidInputError for a file that cannot be used."""
    try:
        records = _Records.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise InvalidInputError(
            f"api_keys {path} cannot be read: {error.strerror}; segstream keys create makes it",
            field=_FIELD,
        ) from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInputError(
            f"api_keys {path} is no file of keys: {place} {first['msg']}".replace("  ", " "),
            field=_FIELD,
        ) from error
    by_id = {record.id: record for record in records}
    if len(by_id) < len(records):
        raise InvalidInputError(f"api_keys {path} has two keys of the same id", field=_FIELD)
    return by_id


def create_key(path: Path, name: str, limits: Limits) -> tuple[str, KeyRecord]:
    """Add a new key to the file, made if need be. The key itself is told here and never again."""
    key, record = _new_key(secrets.token_hex(_NUM_ID_BYTES), name, limits)
    with _locked(path):
        records = read_records(path) if path.exists() else {}
        _write(path, [*records.values(), record])
    return key, record


def replace_key(path: Path, key_id: str) -> tuple[str, KeyRecord]:
    """Give a key a new secret: what belongs to it stays its own. Raises NotFoundError."""
    with _locked(path):
        records = read_records(path)
        old = _existing(records, key_id, path)
        key, record = _new_key(old.id, old.name, old.limits)
        _write(path, list((records | {key_id: record}).values()))
    return key, record


def revoke_key(path: Path, key_id: str) -> KeyRecord:
    """Take a key out of the file. Raises NotFoundError."""
    with _locked(path):
        records = read_records(path)
        record = _existing(records, key_id, path)
        del records[key_id]
        _write(path, list(records.values()))
    return record


def _new_key(key_id: str, name: str, limits: Limits) -> tuple[str, KeyRecord]:
    key = f"segstream_{key_id}_{secrets.token_urlsafe(_NUM_SECRET_BYTES)}"
    now = datetime.now(UTC).replace(microsecond=0)
    return key, KeyRecord(
        id=key_id, name=name, sha256=digest_of(key), created_at=now, limits=limits
    )


def _existing(records: dict[str, KeyRecord], key_id: str, path: Path) -> KeyRecord:
    if key_id not in records:
        raise NotFoundError(f"key {key_id!r} is not in {path}", field="id")
    return records[key_id]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No two commands change the file at once."""
    descriptor = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, records: list[KeyRecord]) -> None:
    """The file changes as a whole, and is for its owner only unless it was for others before."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(_Records(keys=tuple(records)).model_dump_json(indent=2) + "\n")
    temporary.chmod(mode)
    temporary.replace(path)
