import pytest

from segstream.errors import InvalidInputError
from segstream.streaming import SessionConfig
from segstream.wire import FramePolicy


@pytest.mark.parametrize("session_id", ["", "a", "Cam-1.front:left_2", "x" * 128])
def test_session_ids_of_letters_digits_and_joiners_are_taken(session_id: str) -> None:
    assert SessionConfig(session_id=session_id).session_id == session_id


@pytest.mark.parametrize(
    "session_id", [" ", "a b", "a/b", "../a", "é", "a\n", "\n", "\0", "a\ud800", "{}", "a*"]
)
def test_other_session_ids_are_refused_and_named(session_id: str) -> None:
    with pytest.raises(InvalidInputError, match="letters, digits") as refused:
        SessionConfig(session_id=session_id)
    assert refused.value.field == "config.session_id"
    assert repr(session_id) in refused.value.message


def test_long_session_id_is_refused_without_being_repeated() -> None:
    with pytest.raises(InvalidInputError, match="129 characters") as refused:
        SessionConfig(session_id="x" * 129)
    assert refused.value.field == "config.session_id"
    assert len(refused.value.message) < 128


def test_a_session_without_memory_cannot_keep_one() -> None:
    policy = FramePolicy.KEEP_MEMORY_SKIP_MASK
    with pytest.raises(InvalidInputError, match="is_memoryless") as refused:
        SessionConfig(is_memoryless=True, frame_policy=policy)
    assert refused.value.field == "config.frame_policy"
