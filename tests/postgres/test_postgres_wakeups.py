"""Wake-ups in a table: durable, taken by nobody twice, and part of the caller's transaction."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from secrets import token_hex
from time import monotonic
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import Store, StoreError
from durable_core.store import WakeUp, wakeups_of
from durable_core.testing import OpenStore
from durable_core.testing._contract.flows import flow_entry
from durable_core.testing._processes import Child, Pipe
from durable_postgres import PostgresStore, RowRefused, schema_sql
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import proxied

pytestmark = pytest.mark.asyncio

LONG = timedelta(minutes=10)


def past(**units: float) -> datetime:
    return datetime.now(UTC) - timedelta(**units)


async def take(store: Store, *flows: str, hidden_for: timedelta = LONG) -> list[WakeUp]:
    wakeups = wakeups_of(store)
    assert wakeups
    return [*await wakeups.take_wakeups(flows or ("pay",), limit=5_000, visibility_timeout=hidden_for)]


async def test_a_database_without_wakeups_is_migrated(postgres_server_url: str, postgres_url: str) -> None:
    """A log of the layout before is read as it was, its runs are found once, and wake-ups can be set, by several at once."""
    schema = postgres_url.rpartition("schema=")[2]
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        entries = [await store.append(flow_entry(f"run {number}")) for number in range(20)]
    await connection.execute(f"drop table {schema}.steps_wakes; comment on table {schema}.steps is 'durable-postgres layout 3'")
    stores = [PostgresStore.from_url(postgres_url) for _ in range(4)]
    assert await asyncio.gather(*(store.list("run 7") for store in stores)) == [[entries[7]]] * 4
    assert {record.run_id for record in await stores[0].flows()} == {entry.run_id for entry in entries}
    await asyncio.gather(*(store.set_wakeup("run 7", "pay", past(seconds=1)) for store in stores))
    assert len(await take(stores[0])) == 4
    for store in stores:
        await store.__aexit__(None, None, None)
    await connection.close()


async def test_a_role_that_may_only_read_and_write(postgres_server_url: str, postgres_url: str) -> None:
    """With the rights that the docs name wake-ups are set, taken and cleared; without them the error says what to grant."""
    schema = postgres_url.rpartition("schema=")[2]
    role = f"r_{schema}"
    connection = await asyncpg.connect(postgres_server_url)
    await connection.execute(f"{schema_sql(schema)} create role {role} login; grant usage on schema {schema} to {role}")
    async with PostgresStore.from_url(postgres_url.replace("//postgres@", f"//{role}@")) as store:
        with pytest.raises(StoreError, match=r"permission denied for table steps_wakes.*flows and wake-ups"):
            await store.set_wakeup("run", "pay", past(seconds=1))
        await connection.execute(f"grant select, insert, update, delete on {schema}.steps_wakes to {role}")
        await store.set_wakeup("run", "pay", past(seconds=1))
        await store.clear_wakeups(await take(store))
        assert await take(store) == []
    await connection.execute(f"drop owned by {role}; drop role {role}")
    await connection.close()


async def test_a_server_that_was_killed_has_them(postgres_server: PostgresServer) -> None:
    """What was set before SIGKILL and restart is taken after it; what was taken stays hidden, and what was cleared gone."""
    async with PostgresStore.from_url(postgres_server.url) as store:
        hidden, cleared = [await store.set_wakeup(run, "pay", past(minutes=1)) for run in ("hidden", "cleared")]
        assert len(await take(store)) == 2
        await store.clear_wakeups([cleared])
        mine = await store.set_wakeup("run", "pay", past(seconds=1))
        await asyncio.to_thread(postgres_server.kill)
        with pytest.raises(StoreError):
            await store.set_wakeup("run", "pay", past(seconds=1))
        await asyncio.to_thread(postgres_server.start)
        assert [each.token for each in await take(store)] == [mine.token]
        await store.clear_wakeups([mine, hidden])


async def take_and_wait(pipe: Pipe, open_store: OpenStore) -> None:
    """Take what is due, say so, and never clear it."""
    async with open_store() as store:
        await pipe.send([each.token for each in await take(store, hidden_for=timedelta(seconds=1))])
        await asyncio.Event().wait()


async def test_a_process_killed_before_it_cleared(postgres_url: str) -> None:
    """What it had taken is hidden from others for as long as it had said, and comes again then."""
    async with PostgresStore.from_url(postgres_url) as store:
        mine = await store.set_wakeup("run", "pay", past(seconds=1))
        async with Child(take_and_wait, partial(PostgresStore.from_url, postgres_url)) as child:
            assert await child.receive() == [mine.token]
            await child.kill()
        deadline = monotonic() + 30
        while not (again := await take(store)):
            assert monotonic() < deadline
            await asyncio.sleep(0.01)
        assert [(each.token, each.at) for each in again] == [(mine.token, mine.at)]


async def test_the_callers_transaction(postgres_server_url: str, postgres_url: str) -> None:
    """Set within it, a wake-up is there once that commits and not before; rolled back, it never is."""
    mine = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        with pytest.raises(ZeroDivisionError):
            async with mine.transaction():
                await store.within(mine).set_wakeup("run-1", "pay", past(seconds=1))
                raise ZeroDivisionError
        assert await take(store) == []
        at = past(seconds=1)
        async with mine.transaction():
            set_ = await store.within(mine).set_wakeup("run-2", "pay", at)
            await store.within(mine).append(flow_entry("run-2"))
            assert await take(store) == []
        (taken,) = await take(store)
        assert (taken.run_id, taken.flow, taken.at, taken.token) == ("run-2", "pay", at, set_.token)
        assert set_.now < taken.now
        with pytest.raises(StoreError, match=r"not in a transaction; begin one"):
            await store.within(mine).set_wakeup("run", "pay", at)
    await mine.close()


async def test_one_that_somebody_holds_keeps_nobody_waiting(postgres_server_url: str, postgres_url: str) -> None:
    """Who takes passes over wake-ups that another transaction is just taking or clearing."""
    schema = postgres_url.rpartition("schema=")[2]
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        first, second = [await store.set_wakeup(f"run-{number}", "pay", past(minutes=9 - number)) for number in range(2)]
        async with connection.transaction(), asyncio.timeout(5):
            await connection.execute(f"select from {schema}.steps_wakes where token = $1 for update", first.token)
            assert [each.token for each in await take(store)] == [second.token]
        assert [each.token for each in await take(store)] == [first.token]
    await connection.close()


async def test_many_that_are_set_or_cleared_at_once_share_statements(postgres_server_url: str, postgres_url: str) -> None:
    """A thousand wake-ups that are set or cleared at the same time are a few statements."""
    schema = postgres_url.rpartition("schema=")[2]
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        assert await take(store) == []
        await connection.execute(
            f"create table {schema}.noted (what text);"
            f"create function {schema}.note() returns trigger language plpgsql as"
            f" 'begin insert into {schema}.noted values (tg_op); return null; end';"
            f"create trigger note after insert or delete on {schema}.steps_wakes execute function {schema}.note()"
        )
        found = await asyncio.gather(*(store.set_wakeup(f"run-{number}", "pay", past(seconds=1)) for number in range(1_000)))
        assert {each.run_id for each in await take(store)} == {each.run_id for each in found}
        await asyncio.gather(*(store.clear_wakeups([each]) for each in found))
        assert await connection.fetchval(f"select count(*) from {schema}.steps_wakes") == 0
        noted = await connection.fetch(f"select what, count(*) from {schema}.noted group by what order by what")
        assert [what for what, _ in noted] == ["DELETE", "INSERT"]
        assert all(count < 10 for _, count in noted)
    await connection.close()


async def test_a_lost_answer_sets_nothing_twice(postgres_server_url: str, postgres_url: str) -> None:
    """Cut after the commit, the same wake-up is set again, and there is one."""
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with PostgresStore.from_url(through) as store:
            assert await take(store) == []
            proxy.cut_after(b"needle")
            mine = await store.set_wakeup("needle", "pay", past(seconds=1))
            assert proxy.fired.is_set()
            assert [each.token for each in await take(store)] == [mine.token]


async def test_one_that_is_refused_harms_no_other(postgres_url: str) -> None:
    """A flow's name that can't be kept, or that is too long to be found by, fails alone among others set at the same time."""
    names = ["pay", "a\0b", "pay", "lone \ud800", "pay", token_hex(10_000)]
    async with PostgresStore.from_url(postgres_url) as store:
        found = await asyncio.gather(*(store.set_wakeup("run", name, past(seconds=1)) for name in names), return_exceptions=True)
        assert [type(each) for each in found] == [WakeUp, RowRefused, WakeUp, RowRefused, WakeUp, RowRefused]
        assert len(await take(store)) == 3


async def test_a_time_that_somebody_changed(postgres_server_url: str, postgres_url: str) -> None:
    """A time that Python has no datetime for keeps nobody from taking."""
    schema = postgres_url.rpartition("schema=")[2]
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        await store.set_wakeup("run", "pay", past(seconds=1))
        await connection.execute(f"update {schema}.steps_wakes set at = '-infinity'")
        assert [each.at.year for each in await take(store)] == [1]
    await connection.close()
