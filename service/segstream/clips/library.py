"""The clips that are stored: submitted, looked up, ended, forgotten.

A clip's folder holds ``clip`` (as uploaded), ``submission.json``, ``progress.json`` (written by
the one worker that has the job), ``outcome.json`` (created once), ``chunks/`` (what is finished
while the job runs) and ``results/``. Every method blocks: call it from a thread.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final, TypeVar

from pydantic import BaseModel, ValidationError

from segstream.clips.records import (
    Clip,
    ClipState,
    Outcome,
    Progress,
    Submission,
)
from segstream.clips.storage import ClipStorage
from segstream.clips.usage import ClipUsage
from segstream.errors import AlreadyExistsError, NotFoundError, SegstreamError

_R = TypeVar("_R", bound=BaseModel)

_CLIP_ID = re.compile(r"[0-9a-f]{32}")
_CLIPS: Final = "clips"
_KEYS: Final = "keys"
# A folder without a submission is an upload under way, or what is left of one.
_MAX_UPLOAD_SECONDS = 2 * 3600.0


class ClipLibrary:
    """Keeps clips for ``ttl_seconds`` after their job ended."""

    def __init__(self, storage: ClipStorage, *, ttl_seconds: float) -> None:
        self.storage = storage
        self.usage = ClipUsage(storage)
        self._ttl_seconds = ttl_seconds

    def path(self, clip_id: str, *names: str) -> str:
        """Of a file of the clip. Raises NotFoundError for what cannot be a clip's id."""
        if not _CLIP_ID.fullmatch(clip_id):
            raise _no_clip(clip_id)
        return "/".join((_CLIPS, clip_id, *names))

    @contextmanager
    def upload(self, clip_id: str) -> Iterator[IO[bytes]]:
        """A stream for the bytes of a new clip."""
        with self.storage.writer(self.path(clip_id, "clip")) as file:
            yield file

    def submit(self, submission: Submission) -> Clip:
        """Let the uploaded clip have a job.

        If another submission has its idempotency key, that one is returned and this one removed;
        AlreadyExistsError if the two differ.
        """
        self._write(self.path(submission.id, "submission.json"), submission)
        if submission.key_digest and not self._claim_key(submission):
            self.remove_files(submission.id)
            earlier = self.find_by_key(submission.key_digest)
            if earlier is not None:
                check_same(earlier.submission, submission)
                return earlier
            raise AlreadyExistsError(
                "Idempotency-Key belongs to a clip that is just being removed; try again",
                field="Idempotency-Key",
            )
        return Clip(submission, Progress(), None)

    def find_by_key(self, key_digest: str) -> Clip | None:
        """The clip that was submitted with an idempotency key."""
        record = self.storage.read_if_there(_key_path(key_digest))
        if record is None:
            return None
        try:
            return self.get(json.loads(record)["clip_id"])
        except NotFoundError:
            self.storage.remove(_key_path(key_digest))
            return None

    def get_own(self, clip_id: str, key_id: str) -> Clip:
        """A clip that belongs to an API key. Raises NotFoundError for those of others as well."""
        clip = self.get(clip_id)
        if clip.submission.key_id != key_id:
            raise _no_clip(clip_id)
        return clip

    def get(self, clip_id: str) -> Clip:
        """Raises NotFoundError."""
        submission = self._read(self.path(clip_id, "submission.json"), Submission)
        if submission is None:
            raise _no_clip(clip_id)
        # The outcome first: a progress read later is at least as far.
        outcome = self._read(self.path(clip_id, "outcome.json"), Outcome)
        progress = self._read(self.path(clip_id, "progress.json"), Progress)
        return Clip(submission, progress or Progress(), outcome)

    def ids(self) -> list[str]:
        """Oldest first."""
        return [name for name in self.storage.names(_CLIPS) if _CLIP_ID.fullmatch(name)]

    def page(
        self, *, limit: int, before: str = "", key_id: str = ""
    ) -> tuple[list[Clip], str | None]:
        """Those of a key, newest first, older than ``before``; and where the next page goes on."""
        clips: list[Clip] = []
        for clip_id in reversed(self.ids()):
            if before and clip_id >= before:
                continue
            clip = self._get_if_there(clip_id)
            if clip is None or clip.submission.key_id != key_id:
                continue
            if len(clips) == limit:
                return clips, clips[-1].id
            clips.append(clip)
        return clips, None

    def unfinished(self) -> list[Clip]:
        """Clips whose job is not over, oldest first."""
        return [
            clip
            for clip_id in self.ids()
            if not self.is_over(clip_id) and (clip := self._get_if_there(clip_id)) is not None
        ]

    def is_over(self, clip_id: str) -> bool:
        """Whether the job has ended, in whatever way."""
        return self.storage.read_if_there(self.path(clip_id, "outcome.json")) is not None

    def tell(self, clip_id: str, progress: Progress) -> None:
        """Store how far the job has come."""
        self._write(self.path(clip_id, "progress.json"), progress)

    def end(self, clip_id: str, state: ClipState, error: SegstreamError | None = None) -> bool:
        """Store how the job ended; False if it had ended already, which then holds."""
        outcome = Outcome(
            state=state,
            ended_at=time.time(),
            error="" if error is None else error.message,
            field="" if error is None else error.field,
        )
        data = outcome.model_dump_json().encode()
        return self.storage.create(self.path(clip_id, "outcome.json"), data)

    def cancel_or_remove(self, clip_id: str) -> None:
        """End a job that is not over, and remove a clip whose job is. Raises NotFoundError."""
        clip = self.get(clip_id)
        if not self.end(clip_id, ClipState.CANCELLED):
            self.remove(clip)

    def remove(self, clip: Clip) -> None:
        """The clip, its results and its idempotency key."""
        if clip.submission.key_digest:
            self.storage.remove(_key_path(clip.submission.key_digest))
        self.remove_files(clip.id)

    def remove_files(self, clip_id: str, *names: str) -> None:
        """Something of a clip, or all of it."""
        self.storage.remove(self.path(clip_id, *names))

    def tidy(self) -> int:
        """Remove what is past its time; the number of clips removed."""
        self.usage.tidy()
        now = time.time()
        num_removed = 0
        for clip_id in self.ids():
            clip = self._get_if_there(clip_id)
            if clip is None:
                if now - _made_at(clip_id) > _MAX_UPLOAD_SECONDS:
                    self.remove_files(clip_id)
            elif clip.outcome is not None and now - clip.outcome.ended_at > self._ttl_seconds:
                self.remove(clip)
                num_removed += 1
        return num_removed

    def _get_if_there(self, clip_id: str) -> Clip | None:
        try:
            return self.get(clip_id)
        except NotFoundError:
            return None

    def _claim_key(self, submission: Submission) -> bool:
        record = json.dumps({"clip_id": submission.id}).encode()
        return self.storage.create(_key_path(submission.key_digest), record)

    def _write(self, path: str, record: BaseModel) -> None:
        self.storage.replace(path, record.model_dump_json().encode())

    def _read(self, path: str, kind: type[_R]) -> _R | None:
        data = self.storage.read_if_there(path)
        try:
            return None if data is None else kind.model_validate_json(data)
        except ValidationError as error:
            raise NotFoundError(f"the record {path} is damaged", field="clip_id") from error


def digest_of_key(key: str, key_id: str = "") -> str:
    """How an idempotency key is stored; those of different API keys never meet."""
    return hashlib.blake2b(key.encode(), key=key_id.encode(), digest_size=16).hexdigest()


def check_same(earlier: Submission, submission: Submission) -> None:
    """Raise AlreadyExistsError unless the two ask the same of the same clip."""
    for name in ("digest", "options"):
        if getattr(earlier, name) != getattr(submission, name):
            what = "other bytes" if name == "digest" else "other options"
            raise AlreadyExistsError(
                f"Idempotency-Key was used for clip {earlier.id} with {what}; take a new key",
                field="Idempotency-Key",
            )


def _key_path(key_digest: str) -> str:
    return f"{_KEYS}/{key_digest}.json"


def _made_at(clip_id: str) -> float:
    return int(clip_id[:12], 16) / 1000


def _no_clip(clip_id: str) -> NotFoundError:
    return NotFoundError(
        f"clip_id {clip_id!r}: there is no such clip; list the clips to see which there are",
        field="clip_id",
        value=clip_id,
    )
