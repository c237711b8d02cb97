"""The index of flows: written before the log, tidied after it, and mended by who reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from durable_core import StepRecord
from durable_core.stores.flows import FLOW
from durable_core.testing._contract.flows import BEGAN, flow_entry
from durable_redis import RedisStore, _flows
from durable_redis._scripts import CLEAR

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    async with RedisStore.from_url(url) as store, RedisStore.from_url(url) as other:
        for each in (store, other):
            assert [*await each.flows()] == []  # the index is there from now on, and nobody makes it from the logs
        yield store, other


async def entries(store: RedisStore) -> int:
    """Return how many entries the index has, each of three members."""
    client = store._client
    assert isinstance(client, Redis)
    members = await client.zcard(store._keys.flows)
    members -= await client.zscore(store._keys.flows, "!filled") is not None
    assert members % 3 == 0
    return int(members) // 3


async def test_an_entry_under_way_is_left(redis_url: str) -> None:
    """Who reads the index between an entry and its record lists and removes nothing; the run is found once it is there."""
    async with opened(redis_url) as (store, other):
        flow = flow_entry()
        await store._flows.add(flow)
        assert [*await other.flows()] == []
        await store._append(flow)  # and its process dies
        assert [*await other.flows()] == [*await other.flows(states=["started"])] == [flow]


async def test_an_entry_without_its_record_goes_in_the_end(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who died before the log leaves an entry that readers remove once no append can be under way any more."""
    async with opened(redis_url) as (store, other):
        await store._flows.add(flow_entry())
        assert [*await other.flows()] == []
        assert await entries(store) == 1
        monkeypatch.setattr(_flows, "_IN_FLIGHT", 0)
        assert [*await other.flows()] == []
        assert await entries(store) == 0


async def test_a_run_has_one_entry(redis_url: str) -> None:
    """However often its flow goes on, whoever loses its slot, and whoever appends a record again."""
    async with opened(redis_url) as (store, other):
        for revision in range(5):
            flow = await store.append(flow_entry(state="waiting" if revision % 2 else "started", revision=revision))
            await other.append(flow_entry(state="failed", revision=revision))
            await other.append(flow)
            assert await entries(store) == 1
        await other.clear("run")
        assert await entries(store) == 0


async def test_what_a_dead_process_left_behind_is_removed(redis_url: str) -> None:
    """An entry whose run has gone on since is passed over, and gone after the next look."""
    async with opened(redis_url) as (store, other):
        for revision in range(3):
            await store._flows.add(flow_entry(revision=revision))
            await store._append(flow_entry(revision=revision))
        await store._flows.add(flow_entry(state="failed", revision=3))
        newest = await store._append(flow_entry(state="failed", revision=3))
        assert await entries(store) == 4
        assert [*await other.flows(states=["started"])] == []
        assert await entries(store) == 1
        assert [*await other.flows()] == [newest]


async def test_a_run_begun_anew_while_it_is_cleared_is_found(redis_url: str) -> None:
    """Whatever an append and a `clear` do between each other: once the append has returned, its run is found."""
    async with opened(redis_url) as (store, other):
        await store.append(flow_entry())
        flow = flow_entry(started_at=BEGAN + timedelta(hours=1))
        token = await store._flows.add(flow)
        seen = await other._flows.of_run("run")
        await other._serving().ask(CLEAR, [(other._keys.log("run"), 0)])
        await store._append(flow)
        await store._flows.settle(flow, token, won=True)
        await other._flows.drop(seen)
        assert [*await other.flows()] == [*await store.list("run")] == [flow]


async def test_a_run_that_expired_is_not_found(redis_url: str) -> None:
    """The index outlives it, and what is found is what is there."""
    async with opened(redis_url) as (store, other):
        kept = await store.append(flow_entry("kept"))
        await store.append(flow_entry("expired"))
        await store._client.delete(store._keys.log("expired"))
        assert [*await other.flows(limit=1)] == [*await other.flows()] == [kept]


async def test_runs_older_than_the_index_are_found(redis_url: str) -> None:
    """An index that isn't there is made from the logs, once; as when its key was removed."""
    async with opened(redis_url) as (store, _), RedisStore.from_url(redis_url) as other:
        flows = [await store.append(flow_entry(f"run {number:04}", "waiting")) for number in range(30)]
        await store.append(StepRecord(run_id="without a flow", step_id="step"))
        await store._client.delete(store._keys.flows)
        assert [*await other.flows(limit=100)] == flows[::-1]
        assert await entries(store) == 30
        async with RedisStore.from_url(redis_url) as third:
            assert [*await third.flows(limit=100)] == flows[::-1]
        assert await entries(store) == 30


@pytest.mark.parametrize("few", [0, 5, 1_000])
async def test_runs_with_a_prefix_are_found_either_way(redis_url: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them by their ids, many by their time: a page holds the same."""
    monkeypatch.setattr(_flows, "_FEW", few)
    async with opened(redis_url) as (store, other):
        flows = [flow_entry(f"{number % 3}-{number}", started_at=BEGAN + timedelta(seconds=number)) for number in range(1_200)]
        await asyncio.gather(*map(store.append, flows))
        expected = [flow for flow in flows[::-1] if flow.run_id.startswith("1-2")]
        assert [*await other.flows("1-2", limit=1000)] == expected
        assert [*await other.flows("1-2", names=["pay"], states=["started"], limit=10)] == expected[:10]
        assert [*await other.flows("3")] == []


async def test_one_damaged_run_hides_no_other(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is passed over, and told in the log; it stays in the index, which it may be read by later."""
    monkeypatch.setattr(_flows, "_IN_FLIGHT", 0)
    async with opened(redis_url) as (store, other):
        flow = await store.append(flow_entry("sound"))
        await store.append(flow_entry("damaged"))
        await store._client.hset(store._keys.log("damaged"), "1", "{")
        for _ in range(2):
            assert [*await other.flows()] == [flow]
        assert "a run is passed over" in caplog.text
        assert await entries(store) == 2


async def test_plain_steps_leave_the_index_alone(redis_url: str) -> None:
    """Their append is one call on one key, as before: an index that can't be written disturbs none."""
    async with opened(redis_url) as (store, _):
        await store._client.set(store._keys.flows, "no sorted set")
        await store.append(StepRecord(run_id="run", step_id="step"))
        assert await store.get("run", FLOW) is None
        with pytest.raises(Exception, match="that this store did not write"):
            await store.append(flow_entry())
        assert await store.get("run", FLOW) is None
