"""The spill tier as the settings want it."""

from segstream.errors import InvalidInputError
from segstream.memory.directory_store import DirectoryStore
from segstream.memory.redis_store import RedisStore
from segstream.memory.spill_tier import SpillTier
from segstream.settings import Settings
from segstream.telemetry.metrics import Metrics


def make_spill_tier(settings: Settings, metrics: Metrics) -> SpillTier:
    """Redis where it is set, over a directory. Raises InvalidInputError for bad settings."""
    tier = SpillTier(
        DirectoryStore(settings.spill_directory, max_bytes=settings.max_spill_bytes),
        None if settings.redis_url is None else _redis_store(settings),
        owner=settings.replica_name,
        lease_seconds=settings.lease_seconds,
        on_move=metrics.memory_moved,
    )
    metrics.gauge(
        "redis_degraded",
        "Whether Redis is set but cannot be had.",
        lambda: float(tier.is_degraded),
    )
    return tier


def _redis_store(settings: Settings) -> RedisStore:
    assert settings.redis_url is not None
    return RedisStore(
        settings.redis_url.get_secret_value(),
        password=redis_password(settings),
        lease_seconds=settings.lease_seconds,
        ttl_seconds=settings.session_ttl_seconds,
    )


def redis_password(settings: Settings) -> str | None:
    """From the file that is set for it. Raises InvalidInputError if it cannot be read."""
    path = settings.redis_password_file
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise InvalidInputError(
            f"redis_password_file {path} cannot be read: {error.strerror}",
            field="redis_password_file",
        ) from error
