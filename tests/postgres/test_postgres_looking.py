"""Looking at runs from outside: who holds them, and what is new in many of them."""

import asyncio
import os
import socket

import pytest

from durable_core import StepRecord
from durable_core.store import Holder
from durable_postgres import PostgresStore
from tests.postgres.limits import with_limits

pytestmark = pytest.mark.asyncio


async def test_holders_are_told_without_taking_locks(postgres_url: str) -> None:
    """Of many runs those that are held are told, with their holders, also to the process that holds them; nothing is taken."""
    async with with_limits(ping=0.05).from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:
        async with store.lock("a"), store.lock("b"):
            mine = await store.holders(["a", "b", "c"])
            assert {run_id: holder.since is not None for run_id, holder in mine.items()} == {"a": True, "b": True}
            async with asyncio.timeout(10):
                while any(holder.since is None for holder in (await other.holders(["a", "b", "c"])).values()):
                    await asyncio.sleep(0.01)
            theirs = await other.holders(["a", "b", "c"])
            name = f"pid {os.getpid()} on {socket.gethostname()}"
            assert theirs == {run_id: Holder(name, mine[run_id].since) for run_id in ("a", "b")}
            assert await other.holder("a") == theirs["a"]
            assert await other.holder("c") is None
            async with other.lock("c"):
                pass
        assert await other.holders(["a", "b", "c"]) == {}
        assert await other.holders([]) == {}


async def test_what_is_noted_of_a_lock_goes_with_it(postgres_url: str) -> None:
    """The next holder of a run is never told with the time of the one before."""
    async with (
        with_limits(ping=0.05).from_url(postgres_url) as store,
        with_limits(ping=1_000).from_url(postgres_url) as second,
        PostgresStore.from_url(postgres_url) as other,
        asyncio.timeout(10),
    ):
        async with store.lock("run"):
            while (await _holder(other)).since is None:
                await asyncio.sleep(0.01)
        async with second.lock("run"):
            assert (await _holder(other)).since is None


async def _holder(store: PostgresStore) -> Holder:
    holder = await store.holder("run")
    assert holder is not None
    return holder


async def test_what_is_newer(postgres_url: str) -> None:
    """Of many steps those are returned that have an entry above the known revision: the newest one."""
    async with PostgresStore.from_url(postgres_url) as store:
        entries = {}
        for run in range(20):
            for revision in range(run % 4):
                entries[run, revision] = await store.append(StepRecord(run_id=f"run-{run}", step_id="step", revision=revision))
        known = [(f"run-{run}", "step", run % 2 - 1) for run in range(20)]
        found = await store.newer(known)
        expected = [entries[run, run % 4 - 1] for run in range(20) if run % 4 - 1 > run % 2 - 1]
        assert sorted(found, key=lambda record: record.run_id) == sorted(expected, key=lambda record: record.run_id)
        assert await store.newer([]) == []
        assert store.poll_seconds == 2.0
