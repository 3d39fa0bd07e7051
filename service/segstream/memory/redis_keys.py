"""The names of what segstream keeps in Redis."""

_PREFIX = "segstream:1"  # the number rises when what is stored is no longer understood by the old


def epoch_key(session_id: str) -> str:
    """Epoch of the last lease, an integer."""
    return _key(session_id, "epoch")


def lease_key(session_id: str) -> str:
    """Who has the session, for as long as the key lives."""
    return _key(session_id, "lease")


def frames_key(session_id: str) -> str:
    """The frame log, a list, oldest entry first."""
    return _key(session_id, "frames")


def snapshot_key(session_id: str) -> str:
    """The snapshot, a list of its parts."""
    return _key(session_id, "snapshot")


def incoming_key(session_id: str, epoch: int) -> str:
    """A snapshot that is being written."""
    return _key(session_id, f"incoming:{epoch}")


def _key(session_id: str, what: str) -> str:
    # Braces: a Redis cluster keeps all keys of a session on one node.
    return f"{_PREFIX}:{{{session_id}}}:{what}"
