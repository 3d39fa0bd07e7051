"""Snapshots and frame logs in a real Redis; and without it, when it has one of its days."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from segstream.bench.local_redis import LocalRedis
from segstream.errors import InvalidInputError
from segstream.memory.redis_store import RedisStore
from segstream.memory.snapshot import Snapshot
from tests.integration.redis.replica import MODEL, Replica, make_frame, make_snapshot

# asyncio lets a connection go unclosed that is cancelled while it is made.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def is_same(one: Snapshot | None, other: Snapshot) -> bool:
    return (
        one is not None
        and torch.equal(one.keys, other.keys)
        and torch.equal(one.values, other.values)
        and one.next_frame_index == other.next_frame_index
    )


async def test_one_replica_restores_what_another_spilled(make_replica: Any) -> None:
    one, other = await make_replica("one"), await make_replica("other")
    snapshot = make_snapshot(height=400)
    lease = await one.tier.claim("a")
    assert await one.tier.spill(lease, snapshot) == "redis"
    lease = await other.tier.claim("a")
    assert is_same(await other.tier.restore(lease, model_digest=MODEL), snapshot)
    assert ("restore", "redis") in other.moves


async def test_the_frame_log_holds_the_last_frames(make_replica: Any) -> None:
    one, other = await make_replica("one"), await make_replica("other")
    lease = await one.tier.claim("a")
    for index in range(7):
        one.tier.log_frame(lease, make_frame(index), 4)
    await one.tier.flush()
    lease = await other.tier.claim("a")
    frames = await other.tier.logged_frames(lease, model_digest=MODEL)
    assert frames == [make_frame(index) for index in (3, 4, 5, 6)]
    assert await other.tier.logged_frames(lease, model_digest="another") == []


async def test_a_forgotten_session_leaves_nothing_but_its_epoch(
    make_replica: Any, redis: LocalRedis
) -> None:
    one = await make_replica()
    lease = await one.tier.claim("a")
    await one.tier.spill(lease, make_snapshot())
    one.tier.log_frame(lease, make_frame(0), 4)
    await one.tier.flush()
    await one.tier.forget(lease)
    assert redis.command("DBSIZE") == b":1"


async def test_every_key_has_a_time_to_live(make_replica: Any, redis: LocalRedis) -> None:
    one = await make_replica()
    lease = await one.tier.claim("a")
    await one.tier.spill(lease, make_snapshot())
    one.tier.log_frame(lease, make_frame(0), 4)
    await one.tier.flush()
    for name in ("epoch", "lease", "frames", "snapshot"):
        assert int(redis.command("PTTL", f"segstream:1:{{a}}:{name}")[1:]) > 0, name


async def test_a_snapshot_whose_writer_died_does_not_live_for_ever(redis: LocalRedis) -> None:
    store = RedisStore(redis.url, lease_seconds=1, ttl_seconds=60)
    epoch = (await store.claim("a", "one")).epoch
    parts = iter([b"header", b"pages"])

    class Dying(Sequence[bytes]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, _: object) -> Any:
            raise NotImplementedError

        def __iter__(self) -> Iterator[bytes]:
            yield next(parts)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await store.save("a", epoch, Dying())
    assert int(redis.command("PTTL", f"segstream:1:{{a}}:incoming:{epoch}")[1:]) > 0
    await store.close()


async def test_who_lost_the_session_leaves_no_pages_in_redis(
    make_replica: Any, redis: LocalRedis
) -> None:
    one, other = await make_replica("one", lease_seconds=30), await make_replica("other")
    lease = await one.tier.claim("a")
    await other.tier.claim("a")
    assert await one.tier.spill(lease, make_snapshot()) is None
    assert lease.is_lost
    assert redis.command("EXISTS", f"segstream:1:{{a}}:incoming:{lease.epoch}") == b":0"
    assert redis.command("EXISTS", "segstream:1:{a}:snapshot") == b":0"


async def test_a_refusal_is_an_answer_too(make_replica: Any) -> None:
    """Redis that refuses a stale write is back as much as one that takes it."""
    with LocalRedis() as own:
        one = await make_replica("one", url=own.url, lease_seconds=30)
        other = await make_replica("other", url=own.url, lease_seconds=30)
        lease = await one.tier.claim("a")
        await other.tier.claim("a")
        own.freeze()
        await one.tier.claim("b")
        assert one.tier.is_degraded
        own.thaw()
        await asyncio.sleep(0.3)
        await one.tier.release(lease)
        assert lease.is_lost
        assert not one.tier.is_degraded


async def test_a_spoilt_snapshot_is_refused(make_replica: Any, redis: LocalRedis) -> None:
    one = await make_replica()
    lease = await one.tier.claim("a")
    await one.tier.spill(lease, make_snapshot())
    redis.command("LSET", "segstream:1:{a}:snapshot", "1", "spoilt")
    assert await one.tier.restore(lease, model_digest=MODEL) is None
    assert ("refuse", "redis") in one.moves


def killed(redis: LocalRedis) -> None:
    redis.kill()


def frozen(redis: LocalRedis) -> None:
    redis.freeze()


def full(redis: LocalRedis) -> None:
    redis.command("CONFIG", "SET", "maxmemory", "1")


def read_only(redis: LocalRedis) -> None:
    redis.command("REPLICAOF", "127.0.0.1", "1")


def locked(redis: LocalRedis) -> None:
    # In one go, lest the client is back between the two.
    redis.command("CLIENT KILL TYPE normal\r\nCONFIG SET requirepass secret")


@pytest.mark.parametrize("trouble", [killed, frozen, full, read_only, locked])
async def test_redis_can_only_help(
    make_replica: Any, trouble: Callable[[LocalRedis], None]
) -> None:
    with LocalRedis() as own:
        one: Replica = await make_replica(url=own.url)
        lease = await one.tier.claim("a")
        assert lease.is_fenced
        with capture_logs() as logged:
            trouble(own)
            began = time.monotonic()
            one.tier.log_frame(lease, make_frame(0), 4)
            assert await lease.confirm()
            snapshot = make_snapshot(epoch=lease.epoch)
            assert await one.tier.spill(lease, snapshot) == "directory"
            other = await one.tier.claim("b")
            assert not other.is_fenced
            assert await other.confirm()
            assert is_same(await one.tier.restore(lease, model_digest=MODEL), snapshot)
            assert time.monotonic() - began < 8
        assert one.tier.is_degraded
        warnings = [each for each in logged if each["event"].startswith("redis is unavailable")]
        assert len(warnings) == 1
        assert "secret" not in str(logged)


async def test_redis_that_comes_back_is_used_again(make_replica: Any) -> None:
    with LocalRedis() as own:
        one: Replica = await make_replica(url=own.url)
        lease = await one.tier.claim("a")
        own.kill()
        await asyncio.sleep(0.5)
        assert one.tier.is_degraded
        own.start()
        async with asyncio.timeout(15):
            while one.tier.is_degraded or not lease.is_fenced:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await one.tier.spill(lease, make_snapshot()) == "redis"


async def test_a_restart_of_redis_is_one_failure_not_one_for_each_connection(
    make_replica: Any,
) -> None:
    with LocalRedis() as own:
        one: Replica = await make_replica(url=own.url, lease_seconds=30)
        await asyncio.gather(*(one.tier.claim(f"s{number}") for number in range(8)))
        own.restart()
        with capture_logs() as logged:
            for num_claims in (1, 1, 8):
                await asyncio.sleep(0.3)
                claims = (one.tier.claim(f"s{number}") for number in range(num_claims))
                leases = await asyncio.gather(*claims)
        assert all(lease.is_fenced for lease in leases)
        assert [event["event"] for event in logged] == [
            "redis is unavailable: going on without",
            "redis is back",
        ]


async def test_no_redis_at_all_from_the_start(make_replica: Any) -> None:
    one: Replica = await make_replica(url="redis://127.0.0.1:1")
    lease = await one.tier.claim("a")
    assert not lease.is_fenced
    assert await lease.confirm()
    assert await one.tier.spill(lease, make_snapshot()) == "directory"
    await one.tier.release(lease)


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="redis_url"):
        RedisStore("http://somewhere", lease_seconds=1, ttl_seconds=1)
