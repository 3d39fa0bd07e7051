import time

import pytest

from segstream.clips.library import ClipLibrary, check_same, digest_of_key
from segstream.clips.records import (
    Clip,
    ClipOptions,
    ClipState,
    Outcome,
    Progress,
    Submission,
    new_clip_id,
)
from segstream.errors import AlreadyExistsError, InvalidInputError, NotFoundError

OPTIONS = ClipOptions(model="street", name="ride")


def submission(key: str = "", *, digest: str = "d", model: str = "street") -> Submission:
    return Submission(
        id=new_clip_id(),
        options=OPTIONS.model_copy(update={"model": model}),
        num_bytes=3,
        digest=digest,
        submitted_at=time.time(),
        key_digest=digest_of_key(key) if key else "",
    )


def submitted(library: ClipLibrary, key: str = "") -> Clip:
    given = submission(key)
    with library.upload(given.id) as file:
        file.write(b"abc")
    return library.submit(given)


def test_a_clip_is_queued_then_running_then_done(library: ClipLibrary) -> None:
    clip = submitted(library)
    assert library.get(clip.id).state is ClipState.QUEUED
    library.tell(clip.id, Progress(attempt=1, is_running=True, num_frames_done=3, num_frames=4))
    running = library.get(clip.id)
    assert (running.state, running.share_done) == (ClipState.RUNNING, 0.75)
    assert library.end(clip.id, ClipState.DONE)
    done = library.get(clip.id)
    assert (done.state, done.share_done, done.is_over) == (ClipState.DONE, 1.0, True)


def test_an_interrupted_clip_is_queued_again(library: ClipLibrary) -> None:
    clip = submitted(library)
    library.tell(clip.id, Progress(attempt=1, num_frames_done=3))
    again = library.get(clip.id)
    assert (again.state, again.progress.num_frames_done) == (ClipState.QUEUED, 3)


def test_the_first_end_holds(library: ClipLibrary) -> None:
    clip = submitted(library)
    assert library.end(clip.id, ClipState.FAILED, InvalidInputError("bad", field="clip"))
    assert not library.end(clip.id, ClipState.DONE)
    outcome = library.get(clip.id).outcome
    assert outcome is not None
    assert (outcome.state, outcome.error, outcome.field) == (ClipState.FAILED, "bad", "clip")


def test_revisions_rise_with_every_change() -> None:
    told = submission()
    over = Outcome(state=ClipState.DONE, ended_at=0)
    histories = [
        (Progress(), None),
        (Progress(attempt=1, is_running=True), None),
        (Progress(attempt=1, is_running=True, num_frames_done=8), None),
        (Progress(attempt=1, num_frames_done=8), None),
        (Progress(attempt=2, is_running=True, num_frames_done=8), None),
        (Progress(attempt=2, is_running=True, num_frames_done=9), None),
        (Progress(attempt=2, is_running=True, num_frames_done=9), over),
    ]
    revisions = [Clip(told, progress, outcome).revision for progress, outcome in histories]
    assert revisions == sorted(set(revisions))


@pytest.mark.parametrize(
    ("progress", "eta"),
    [
        (Progress(is_running=True, num_frames_done=5, num_frames=25, frames_per_second=4), 5.0),
        (Progress(is_running=True, num_frames_done=30, num_frames=25, frames_per_second=4), 0.0),
        (Progress(is_running=True, num_frames_done=5, frames_per_second=4), None),
        (Progress(is_running=True, num_frames_done=5, num_frames=25), None),
        (Progress(num_frames_done=5, num_frames=25, frames_per_second=4), None),
    ],
    ids=["half way", "longer than told", "no length", "no speed", "not running"],
)
def test_the_time_that_is_left(progress: Progress, eta: float | None) -> None:
    assert Clip(submission(), progress, None).eta_seconds == eta


def test_a_key_gives_the_same_clip_again(library: ClipLibrary) -> None:
    first = submitted(library, "key")
    second = submitted(library, "key")
    assert second.id == first.id
    assert library.ids() == [first.id]


@pytest.mark.parametrize(("change", "told"), [("digest", "bytes"), ("model", "options")])
def test_a_key_for_something_else_is_refused(library: ClipLibrary, change: str, told: str) -> None:
    first = submitted(library, "key")
    other = submission("key", **{change: "other"})
    with pytest.raises(AlreadyExistsError, match=f"other {told}"):
        library.submit(other)
    assert library.ids() == [first.id]
    with pytest.raises(AlreadyExistsError):
        check_same(first.submission, other)


def test_a_key_is_free_again_when_its_clip_is_gone(library: ClipLibrary) -> None:
    first = submitted(library, "key")
    library.end(first.id, ClipState.DONE)
    library.cancel_or_remove(first.id)
    assert submitted(library, "key").id != first.id


def test_the_key_of_a_clip_that_vanished_is_free(library: ClipLibrary) -> None:
    first = submitted(library, "key")
    library.remove_files(first.id)
    assert library.find_by_key(digest_of_key("key")) is None
    assert submitted(library, "key").id != first.id


def test_removal_cancels_first(library: ClipLibrary) -> None:
    clip = submitted(library)
    library.cancel_or_remove(clip.id)
    assert library.get(clip.id).state is ClipState.CANCELLED
    library.cancel_or_remove(clip.id)
    with pytest.raises(NotFoundError, match=clip.id):
        library.get(clip.id)


@pytest.mark.parametrize("clip_id", ["", "..", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 32])
def test_an_id_that_is_none(library: ClipLibrary, clip_id: str) -> None:
    with pytest.raises(NotFoundError):
        library.get(clip_id)


def test_pages_go_from_new_to_old(library: ClipLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for number in range(5):
        monkeypatch.setattr(time, "time_ns", lambda number=number: (number + 1) * 10**9)
        made.append(submitted(library).id)
    first, after = library.page(limit=2)
    assert [clip.id for clip in first] == [made[4], made[3]]
    assert after == made[3]
    rest, after = library.page(limit=3, before=made[3])
    assert [clip.id for clip in rest] == [made[2], made[1], made[0]]
    assert after is None


def test_only_clips_that_are_over_grow_old(
    library: ClipLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, over = submitted(library), submitted(library, "key")
    library.end(over.id, ClipState.DONE)
    assert library.tidy() == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert library.tidy() == 1
    assert library.ids() == [waiting.id]
    assert [clip.id for clip in library.unfinished()] == [waiting.id]
    assert library.find_by_key(digest_of_key("key")) is None


def test_what_is_left_of_an_upload_goes_in_time(
    library: ClipLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_id = new_clip_id()
    with library.upload(clip_id) as file:
        file.write(b"abc")
    library.tidy()
    assert library.ids() == [clip_id]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3 * 3600)
    library.tidy()
    assert library.ids() == []


def test_a_damaged_record_is_told_of(library: ClipLibrary) -> None:
    clip = submitted(library)
    library.storage.replace(library.path(clip.id, "submission.json"), b"{")
    with pytest.raises(NotFoundError, match="damaged"):
        library.get(clip.id)
    assert library.page(limit=9) == ([], None)
