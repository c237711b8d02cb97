"""`wait` and `waitaof`: what was returned has the copies asked for; what has fewer is not returned."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

import pytest

from durable_core import StepRecord, StoreError, open_store
from tests.servers.redis import KEEPING, RedisServer, redis_pair, redis_server

pytestmark = pytest.mark.asyncio


def entry(step_id: str = "step", **fields: object) -> StepRecord:
    return StepRecord(run_id="run", step_id=step_id, **fields)  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as started:
        yield started


@pytest.fixture
def pair() -> Iterator[tuple[RedisServer, RedisServer]]:
    with redis_pair(*KEEPING) as started:
        yield started


@pytest.mark.parametrize("seed", range(3))
async def test_what_waitaof_returned_outlives_sigkill(server: RedisServer, seed: int) -> None:
    """The server is killed while appends are in flight, and started again: every append that returned is there."""
    returned: list[StepRecord] = []
    url = f"{server.url}?waitaof=1,0,5000"

    async def append(worker: int) -> None:
        async with open_store(url) as store:
            for number in range(1000):
                record = await store.append(entry(f"{worker} {number}"))
                returned.append(record)

    workers = [asyncio.create_task(append(worker)) for worker in range(4)]
    enough = random.Random(seed).randint(20, 400)
    while len(returned) < enough:
        await asyncio.sleep(0.001)
    server.kill()
    for worker in workers:
        with suppress(StoreError):
            await worker
    server.start()
    async with open_store(url) as store:
        kept = {record.id for record in await store.list("run")}
    assert [record.step_id for record in returned if record.id not in kept] == []


async def test_an_append_without_its_copies_raises(pair: tuple[RedisServer, RedisServer]) -> None:
    """While the replica is away nobody gets the record, neither its writer, nor who loses to it, nor who reads it."""
    primary, replica = pair
    url = f"{primary.url}?wait=1,100"
    async with AsyncExitStack() as stack:
        # Each on a connection of its own that has written nothing yet: WAIT looks at what its connection wrote.
        one, two, three, four = [await stack.enter_async_context(open_store(url)) for _ in range(4)]
        await one.append(entry("before"))
        for store in (two, three, four):
            assert await store.get("run", "nothing") is None
        replica.pause()
        record = entry()
        for attempt in (
            lambda: one.append(record),
            lambda: one.append(record),
            lambda: two.append(entry()),
            lambda: three.get("run", "step"),
            lambda: four.list("run"),
            lambda: four.newer([("run", "step", -1)]),  # type: ignore[attr-defined]  # every store of Redis has it
        ):
            with pytest.raises(StoreError, match=r"WAIT found 0 of 1 copies within 100 ms.*append it again"):
                await attempt()
        # Who waits for what isn't there goes on waiting.
        assert await four.newer([("run", "step", 0), ("run", "nothing", -1)]) == []  # type: ignore[attr-defined]  # as above
        replica.resume()
    async with open_store(f"{primary.url}?wait=1,5000") as store:
        assert (await store.append(entry())).id == record.id
        assert (await store.append(record)).id == record.id
        assert [each.step_id for each in await store.list("run")] == ["before", "step"]


async def test_a_clear_without_its_copies_raises(pair: tuple[RedisServer, RedisServer]) -> None:
    """While the replica is away no clear returns, nor one that finds the run gone already: a failover would bring it back."""
    primary, replica = pair
    url = f"{primary.url}?wait=1,100"
    async with open_store(url) as one, open_store(url) as two:
        await one.append(entry())
        assert await two.get("run", "nothing") is None
        replica.pause()
        for store in (one, two):
            with pytest.raises(StoreError, match="WAIT found 0 of 1 copies"):
                await store.clear("run")
        replica.resume()
    async with open_store(f"{primary.url}?wait=1,5000") as store:
        await store.clear("run")
        assert len(await store.list("run")) == 0


async def test_appends_of_one_batch_share_the_wait(pair: tuple[RedisServer, RedisServer]) -> None:
    """Every append of a batch is covered: all are on the replica when they return, and all raise while it is away."""
    primary, replica = pair
    async with open_store(f"{primary.url}?wait=1,200") as store:
        await asyncio.gather(*(store.append(entry(f"{number}")) for number in range(100)))
        assert replica.command("HGET", "durable:{run}:log", "n") == b"100"
        replica.pause()
        more = (store.append(entry(f"more {number}")) for number in range(100))
        outcomes = await asyncio.gather(*more, return_exceptions=True)
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        replica.resume()


async def test_waitaof_asks_for_the_disk() -> None:
    """A server that leaves syncing to its operating system can't say when a record is on disk, so no append returns."""
    with redis_server("--appendonly", "yes", "--appendfsync", "no") as server:
        async with open_store(f"{server.url}?waitaof=1,0,100") as store:
            with pytest.raises(
                StoreError, match="WAITAOF found 0 local and 0 remote of 1 local and 0 remote copies within 100 ms"
            ):
                await store.append(entry())


@pytest.mark.filterwarnings("ignore::durable_redis.DataLossWarning")
async def test_waitaof_needs_appendonly() -> None:
    """A server that writes no appendonly file can't confirm it; the error says what to do."""
    with redis_server("--appendonly", "no") as server:
        async with open_store(f"{server.url}?waitaof=1,0,500") as store:
            with pytest.raises(StoreError, match="appendonly"):
                await store.append(entry())


async def test_a_server_without_waitaof() -> None:
    """A server older than 7.2 has no WAITAOF; the error says so, and no append is taken for durable."""
    with redis_server(*KEEPING, "--rename-command", "WAITAOF", "") as server:
        async with open_store(f"{server.url}?waitaof=1,0,500") as store:
            for _ in range(2):
                with pytest.raises(StoreError, match=r"no WAITAOF, which Redis 7\.2"):
                    await store.append(entry())


async def test_both_waits_at_once(pair: tuple[RedisServer, RedisServer]) -> None:
    """Copies in memory and on disk can be asked for together."""
    primary, _ = pair
    async with open_store(f"{primary.url}?wait=1,5000&waitaof=1,1,5000") as store:
        record = await store.append(entry())
        assert await store.get("run", "step") == record
        await store.clear("run")
        assert len(await store.list("run")) == 0
