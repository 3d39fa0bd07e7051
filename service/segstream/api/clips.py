"""Clip jobs as the settings want them."""

import hashlib
from pathlib import Path

import platformdirs

from segstream.api.spilling import redis_password
from segstream.clips.decoder import DecoderLimits
from segstream.clips.embedded_queue import EmbeddedJobQueue
from segstream.clips.job_runner import JobRunner
from segstream.clips.jobs import ClipJobs
from segstream.clips.library import ClipLibrary
from segstream.clips.queue import JobQueue
from segstream.clips.redis_queue import RedisJobQueue
from segstream.clips.storage import ClipStorage
from segstream.settings import Settings
from segstream.streaming import Resources, Segmenter


def make_clip_jobs(settings: Settings, segmenter: Segmenter, resources: Resources) -> ClipJobs:
    """With a queue in Redis where it is set, else in a file. Raises InvalidInputError."""
    library = ClipLibrary(ClipStorage(settings.clip_storage), ttl_seconds=settings.clip_ttl_seconds)
    limits = DecoderLimits(
        max_pixels=settings.max_image_pixels,
        max_seconds=settings.max_clip_seconds,
        max_memory_bytes=settings.max_clip_decoder_bytes,
    )
    return ClipJobs(
        library,
        _queue(settings, library.storage),
        JobRunner(library, segmenter, resources, limits),
        has_workers=settings.clip_workers > 0,
    )


def _queue(settings: Settings, storage: ClipStorage) -> JobQueue:
    if settings.redis_url is not None:
        return RedisJobQueue(
            settings.redis_url.get_secret_value(),
            password=redis_password(settings),
            num_workers=settings.clip_workers,
        )
    return EmbeddedJobQueue(_folder(settings, storage), num_workers=settings.clip_workers)


def _folder(settings: Settings, storage: ClipStorage) -> Path:
    """Beside the clips, or on this machine when they are not."""
    if storage.directory is not None:
        return storage.directory / "queue"
    name = hashlib.blake2b(settings.clip_storage.encode(), digest_size=8).hexdigest()
    return platformdirs.user_data_path("segstream") / "queues" / name
