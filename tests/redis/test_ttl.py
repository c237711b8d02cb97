"""`ttl`: a run expires as a whole, after its last append, and not while it waits."""

from __future__ import annotations

import asyncio

import pytest
import redis

from durable_core import StepRecord, StoreError, open_store
from durable_redis import RedisStore

pytestmark = pytest.mark.asyncio


def entry(step_id: str, revision: int = 0, status: str = "success") -> StepRecord:
    return StepRecord(run_id="run", step_id=step_id, revision=revision, status=status)  # type: ignore[arg-type]


class Expiry:
    """Reads a run's expiry as the server tells it."""

    def __init__(self, url: str) -> None:
        server, _, prefix = url.partition("prefix=")
        self.key = f"{prefix}:{{run}}:log"
        self._server = server.rstrip("?&")

    @property
    def ms(self) -> int:
        """Milliseconds to live; -1 for ever, -2 for no such run."""
        with redis.Redis.from_url(self._server) as client:
            return int(client.pttl(self.key))

    def set(self, ms: int) -> None:
        with redis.Redis.from_url(self._server) as client:
            client.pexpire(self.key, ms)


async def test_each_append_renews_the_ttl(redis_url: str) -> None:
    """A run lives `ttl` seconds from its last append, whoever appended."""
    expiry = Expiry(redis_url)
    async with open_store(f"{redis_url}&ttl=100") as store, open_store(redis_url) as plain:
        for number, writer in enumerate((store, store, plain)):
            await writer.append(entry(f"{number}"))
            assert 99_000 < expiry.ms <= 100_000
            expiry.set(50_000)


async def test_without_ttl_a_run_is_kept(redis_url: str) -> None:
    """A run that nobody gave a `ttl` stays until it is cleared."""
    async with open_store(redis_url) as store:
        await store.append(entry("step"))
        assert Expiry(redis_url).ms == -1


async def test_a_run_that_waits_does_not_expire(redis_url: str) -> None:
    """From the first step that waits until the last has its outcome the run is kept; then its `ttl` begins."""
    expiry = Expiry(redis_url)
    async with open_store(f"{redis_url}&ttl=100") as store, open_store(redis_url) as person:
        for append in (
            entry("approval", 0, "waiting"),
            entry("other step"),
            entry("sleep", 0, "waiting"),
            entry("approval", 1, "waiting"),
            entry("approval", 2),
            entry("third"),
        ):
            await store.append(append)
            if append.step_id != "other" or append.revision:
                assert expiry.ms == -1, append
        await person.append(entry("sleep", 1))
        assert 99_000 < expiry.ms <= 100_000
        await store.append(entry("approval", 3, "reopened"))
        assert 99_000 < expiry.ms <= 100_000


async def test_a_lost_claim_changes_no_waiting(redis_url: str) -> None:
    """Appends that find their slot taken, or that fill an old one, end no wait."""
    expiry = Expiry(redis_url)
    async with open_store(f"{redis_url}&ttl=100") as store:
        await store.append(entry("approval", 3, "waiting"))
        await store.append(entry("approval", 3))
        await store.append(entry("approval", 1))
        assert expiry.ms == -1
        await store.append(entry("approval", 4))
        assert expiry.ms > 0


async def test_a_run_expires_whole(redis_url: str) -> None:
    """After its `ttl` nothing of a run is left, and its id begins anew."""
    expiry = Expiry(redis_url)
    async with open_store(f"{redis_url}&ttl=0.3") as store:
        first = entry("step")
        await store.append(first)
        async with asyncio.timeout(5):
            while expiry.ms != -2:
                await asyncio.sleep(0.01)
        assert len(await store.list("run")) == 0
        assert await store.get("run", "step") is None
        assert [run async for run in store.runs()] == []
        second = entry("step")
        assert await store.append(second) is second


async def test_a_ttl_shorter_than_the_lease(redis_url: str) -> None:
    """While its lock is held a run does not expire, however short its `ttl` is beside the lease."""
    expiry = Expiry(redis_url)
    async with open_store(f"{redis_url}&ttl=2&lease=60") as store:
        assert isinstance(store, RedisStore)
        async with store.lock("run"):
            await store.append(entry("step"))
            before = expiry.ms
            while (now := expiry.ms) <= before:
                assert now > 0
                before = now
                await asyncio.sleep(0.01)


async def test_a_ttl_that_is_none(redis_url: str) -> None:
    """A `ttl` of nothing, or less, is refused."""
    for ttl in ("0", "-1", "never"):
        with pytest.raises(StoreError, match="expected a positive number of seconds"):
            open_store(f"{redis_url}&ttl={ttl}")
