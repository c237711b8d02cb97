"""A process that is killed between the index of flows and the log, at each of its requests, leaves an index that is right."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import asyncpg
import pytest
from redis.asyncio import Connection as RedisConnection

from durable_core import Store, open_store
from durable_core.store import flows_of
from durable_core.stores.flows import FLOW, FLOW_STATES, FlowState, state_of
from durable_core.testing import OpenStore
from durable_core.testing._contract.flows import flow_entry
from durable_postgres import PostgresStore
from durable_redis import RedisStore
from durable_s3 import S3Store
from durable_sqlite import SqliteStore
from durable_sqlite._check import Checked

pytestmark = pytest.mark.asyncio

LIFE: tuple[FlowState, ...] = ("started", "failed", "waiting", "succeeded")
MOST = 60
# A process that has imported all this already, and forks one for each kill.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
When = Literal["before", "after"]


class Fuse:
    """Kills this process before or after its request number `at`, counted from when it was lit."""

    def __init__(self, at: int, when: When) -> None:
        self.at = at
        self.when = when
        self.is_lit = False
        self._count = 0

    def burn(self, when: When) -> None:
        if self.is_lit and when == self.when:
            self._count += 1
            if self._count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


FUSE = Fuse(0, "before")


class DyingRedisConnection(RedisConnection):
    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        FUSE.burn("before")
        await super().send_packed_command(*args, **kwargs)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        answer = await super().read_response(*args, **kwargs)
        FUSE.burn("after")
        return answer


class DyingPostgresConnection(asyncpg.Connection):
    async def _around(self, work: Coroutine[Any, Any, Any]) -> Any:
        FUSE.burn("before")
        answer = await work
        FUSE.burn("after")
        return answer

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return await self._around(super().execute(*args, **kwargs))

    async def fetch(self, *args: Any, **kwargs: Any) -> Any:
        return await self._around(super().fetch(*args, **kwargs))

    async def fetchval(self, *args: Any, **kwargs: Any) -> Any:
        return await self._around(super().fetchval(*args, **kwargs))


class DyingSqliteConnection(Checked):
    def execute(self, *args: Any) -> sqlite3.Cursor:
        if not args[0].startswith("begin"):  # which is tried until no other process writes
            FUSE.burn("before")
        answer = super().execute(*args)
        FUSE.burn("after")
        return answer


@asynccontextmanager
async def dying(url: str) -> AsyncIterator[Store]:
    """Open a store whose requests burn the fuse."""
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **options: connect(*args, **{**options, "factory": DyingSqliteConnection})
    async with open_store(url) as store:
        if isinstance(store, SqliteStore):
            pass
        elif isinstance(store, RedisStore):
            store._client.connection_pool.connection_class = DyingRedisConnection
        elif isinstance(store, PostgresStore):
            address, _, schema = url.partition("?schema=")
            pool = await asyncpg.create_pool(address, connection_class=DyingPostgresConnection)
            yield PostgresStore(pool, schema=schema)
            return
        else:
            assert isinstance(store, S3Store)
            client = await store._connection.request(lambda client: client)
            client.meta.events.register("before-send.s3", lambda **_: FUSE.burn("before"))
            client.meta.events.register("after-call.s3", lambda **_: FUSE.burn("after"))
        yield store


def live(url: str, run_id: str, at: int, when: When) -> None:
    """Append what a flow goes through, and clear the run; be killed on the way."""

    async def main() -> None:
        async with dying(url) as store:
            await store.list("warm")
            FUSE.is_lit = True
            for revision, state in enumerate(LIFE):
                await store.append(flow_entry(run_id, state, revision))
            await store.clear(run_id)
            FUSE.is_lit = False

    global FUSE
    FUSE = Fuse(at, when)
    asyncio.run(main())


async def is_right(store: Store, runs: list[str]) -> None:
    """What is found is what the logs say, and nothing else; under its own state, and under no other."""
    index = flows_of(store)
    assert index is not None
    held = FLOW_STATES if index.flow_states is None else index.flow_states
    newest = [flow for run_id in runs if (flow := await store.get(run_id, FLOW)) is not None]
    expected = sorted((flow for flow in newest if state_of(flow) in held), key=lambda flow: flow.run_id, reverse=True)
    assert [*await index.flows(limit=1000)] == expected
    assert [*await index.flows(names=["pay"], limit=1000)] == expected
    for state in FLOW_STATES:
        assert [*await index.flows(states=[state])] == [flow for flow in expected if state_of(flow) == state]


@pytest.fixture(params=["sqlite", "postgres", "redis", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'runs.db'}"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_killed_at_any_request(url: str, when: When) -> None:
    """The index names each run that is there, and no other, as it stands; and so it does after the next entry."""

    async with open_store(url) as store:
        await is_right(store, [])  # an index that is made at its first use is made now
    survived: list[int] = []
    start = 1
    while not survived:
        assert start < MOST
        processes = {at: FORKS.Process(target=live, args=(url, f"run {at:02}", at, when)) for at in range(start, start + 8)}
        for process in processes.values():
            process.start()
        for process in processes.values():
            await asyncio.to_thread(process.join, 120)
        assert {process.exitcode for process in processes.values()} <= {0, -signal.SIGKILL}
        survived = [at for at, process in processes.items() if process.exitcode == 0]
        start += 8
    assert min(survived) > len(LIFE)  # each append was killed once at least
    runs = [f"run {at:02}" for at in range(1, start)]
    open_: OpenStore = partial(open_store, url)
    async with open_() as store, open_() as other:
        stand = {flow.revision for run_id in runs if (flow := await store.get(run_id, FLOW)) is not None}
        assert stand == set(range(len(LIFE)))
        for reader in (store, other):
            await is_right(reader, runs)
        for run_id in runs:
            flow = await store.get(run_id, FLOW)
            await store.append(flow_entry(run_id, "parked", 0 if flow is None else flow.revision + 1))
        for reader in (store, other):
            await is_right(reader, runs)
