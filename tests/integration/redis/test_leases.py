"""Whose a session is: against a real Redis."""

import asyncio
import contextlib
import time
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segstream.bench.local_redis import LocalRedis
from segstream.memory.redis_store import RedisStore
from segstream.memory.spill_store import StaleEpochError
from tests.integration.redis.replica import make_snapshot


async def test_who_claims_last_has_the_session(make_replica: Any) -> None:
    one, other = await make_replica("one"), await make_replica("other")
    old = await one.tier.claim("a")
    assert await old.confirm()
    new = await other.tier.claim("a")
    assert new.epoch > old.epoch
    assert await new.confirm()
    assert not await old.confirm()
    assert one.lost == ["a"]


async def test_the_new_owner_answers_only_when_the_old_one_cannot_any_more(
    make_replica: Any,
) -> None:
    one, other = await make_replica("one"), await make_replica("other")
    await one.tier.claim("a")
    began = time.monotonic()
    lease = await other.tier.claim("a")
    assert await lease.confirm()
    assert time.monotonic() - began > 0.2


async def test_a_session_that_was_released_is_the_next_ones_at_once(make_replica: Any) -> None:
    one = await make_replica("one")
    other = await make_replica("other", lease_seconds=30)
    await one.tier.release(await one.tier.claim("a"))
    async with asyncio.timeout(1):
        assert await (await other.tier.claim("a")).confirm()


async def test_who_was_stopped_does_not_answer_for_what_it_lost(make_replica: Any) -> None:
    """The renewer of a stopped process stands still as well."""
    one, other = await make_replica("one"), await make_replica("other")
    lease = await one.tier.claim("a")
    for task in one.tier._tasks:
        task.cancel()
    await asyncio.sleep(0.5)
    await other.tier.claim("a")
    assert not await lease.confirm()
    assert await one.tier.spill(lease, make_snapshot()) is None


async def test_who_was_stopped_and_lost_nothing_goes_on(make_replica: Any) -> None:
    one = await make_replica("one")
    lease = await one.tier.claim("a")
    for task in one.tier._tasks:
        task.cancel()
    await asyncio.sleep(0.5)
    assert await lease.confirm()


async def test_epochs_rise_over_a_redis_that_lost_everything(
    make_replica: Any, redis: LocalRedis
) -> None:
    one = await make_replica("one")
    before = await one.tier.claim("a")
    redis.command("FLUSHALL")
    assert (await one.tier.claim("a")).epoch > before.epoch


async def test_a_lease_survives_a_redis_that_lost_everything(
    make_replica: Any, redis: LocalRedis
) -> None:
    one, other = await make_replica("one"), await make_replica("other")
    lease = await one.tier.claim("a")
    redis.command("FLUSHALL")
    await asyncio.sleep(0.5)
    assert await lease.confirm()
    assert await one.tier.spill(lease, make_snapshot()) == "redis"
    await other.tier.claim("a")
    await asyncio.sleep(0.5)
    assert not await lease.confirm()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "renew", "save", "append", "release", "forget", "wipe"]),
        st.integers(0, 2),
    ),
    max_size=25,
)


@given(steps=STEPS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_only_the_newest_owner_ever_writes(redis: LocalRedis, steps: list[tuple[str, int]]) -> None:
    """Three owners, one session; a wipe is one of Redis' memory, not of the owners'."""

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(play(redis, steps))


async def play(redis: LocalRedis, steps: list[tuple[str, int]]) -> None:
    redis.command("FLUSHALL")
    store = RedisStore(redis.url, lease_seconds=60, ttl_seconds=60, operation_seconds=5)
    epochs: dict[int, int] = {}
    for step, owner in steps:
        newest = max(epochs.values(), default=0)
        if step == "claim":
            epochs[owner] = (await store.claim("a", f"owner-{owner}")).epoch
            assert epochs[owner] > newest
        elif step == "wipe":
            redis.command("FLUSHALL")
            # Whoever is newest renews in no time; the others had lost before.
            await store.renew("x", {"a": newest} if newest else {})
        elif owner in epochs:
            is_allowed = await try_to_write(store, step, epochs[owner])
            assert is_allowed is (epochs[owner] == newest)
    await store.close()


async def try_to_write(store: RedisStore, step: str, epoch: int) -> bool:
    try:
        if step == "renew":
            return not await store.renew("x", {"a": epoch})
        await write(store, step, epoch)
    except StaleEpochError:
        return False
    return True


async def write(store: RedisStore, step: str, epoch: int) -> None:
    match step:
        case "save":
            await store.save("a", epoch, [str(epoch).encode()])
            assert await store.load("a") == [str(epoch).encode()]
        case "append":
            await store.append_frame("a", epoch, str(epoch).encode(), 3)
            assert (await store.frames("a"))[-1] == str(epoch).encode()
        case "release":
            await store.release("a", epoch)
        case "forget":
            await store.forget("a", epoch)
            assert await store.load("a") is None
            assert await store.frames("a") == []
