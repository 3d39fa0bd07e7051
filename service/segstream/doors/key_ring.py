"""Tells whose a key is, and follows the file of keys while the service runs."""

import asyncio
import hmac
from pathlib import Path
from typing import Final

import structlog

from segstream.doors import tickets
from segstream.doors.accounts import Account, OnLimit
from segstream.doors.keys import KEY, KeyRecord, digest_of, read_records
from segstream.errors import InvalidInputError, UnauthenticatedError

_log = structlog.get_logger(__name__)

# Compared with where no key has the id that was given, so that it takes as long.
_NO_DIGEST: Final = digest_of("")
_BEARER: Final = "bearer "

_Version = tuple[int, int, int]


class KeyRing:
    """The keys of one service. ``path`` None: nobody is asked for a key.

    Raises InvalidInputError for a file that cannot be used. One that breaks later changes nothing:
    the keys read last go on holding.
    """

    def __init__(self, path: Path | None, on_limit: OnLimit) -> None:
        self._path = path
        self._on_limit = on_limit
        self._anyone = Account(on_limit=on_limit)
        self._records: dict[str, KeyRecord] = {}
        self._accounts: dict[str, Account] = {}
        self._version = self._stat()
        if path is not None:
            self._take(read_records(path))

    @property
    def is_open(self) -> bool:
        """Whether everybody may come in."""
        return self._path is None

    @property
    def num_keys(self) -> int:
        return len(self._records)

    def admit(self, key: str | None) -> Account:
        """The account of a key. Raises UnauthenticatedError."""
        if self.is_open:
            return self._anyone
        if not key:
            raise UnauthenticatedError(
                "an API key is needed: send it as Authorization: Bearer KEY, or as X-Api-Key"
            )
        found = KEY.fullmatch(key)
        record = self._records.get(found["id"]) if found else None
        expected = record.sha256 if record else _NO_DIGEST
        if not hmac.compare_digest(digest_of(key), expected) or record is None:
            raise UnauthenticatedError("the API key is not valid; it may have been revoked")
        return self._accounts[record.id]

    def ticket(self, account: Account, subject: str) -> str:
        """Lets whoever has it read ``subject`` for an hour or two; empty where all may."""
        record = self._records.get(account.key_id)
        return tickets.issue(record, subject) if record else ""

    def admit_ticket(self, ticket: str, subject: str) -> Account:
        """The account whose key let this be read. Raises UnauthenticatedError."""
        record = self._records.get(tickets.key_id_of(ticket))
        if record is None or not tickets.is_valid(ticket, record, subject):
            raise UnauthenticatedError("the ticket of this link is not valid, or not any more")
        return self._accounts[record.id]

    async def refresh(self) -> list[Account]:
        """Read the file again if it has changed; returns the accounts whose keys are gone."""
        if self._path is None:
            return []
        records = await asyncio.to_thread(self._read_if_changed, self._path)
        return [] if records is None else self._take(records)

    def _read_if_changed(self, path: Path) -> dict[str, KeyRecord] | None:
        version = self._stat()
        if version == self._version:
            return None
        self._version = version
        try:
            records = read_records(path)
        except InvalidInputError as error:
            _log.error("API keys left as they were", reason=error.message)
            return None
        _log.info("API keys read", num_keys=len(records))
        return records

    def _stat(self) -> _Version | None:
        try:
            stat = self._path.stat() if self._path else None
        except OSError:
            return None
        return stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _take(self, records: dict[str, KeyRecord]) -> list[Account]:
        gone = [account for key_id, account in self._accounts.items() if key_id not in records]
        accounts = {}
        for record in records.values():
            account = self._accounts.get(record.id)
            if account is None:
                account = Account(record.id, record.limits, self._on_limit)
            else:
                account.change_limits(record.limits)
            accounts[record.id] = account
        self._records, self._accounts = records, accounts
        return gone


def bearer(authorization: str) -> str | None:
    """The key in an ``Authorization`` header."""
    if authorization[: len(_BEARER)].lower() != _BEARER:
        return None
    return authorization[len(_BEARER) :].strip()
