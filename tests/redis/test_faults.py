"""Connections, servers and memory that fail: an error each, and nothing lost or doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import pytest
from redis.asyncio import Redis

from durable_core import StepRecord, StoreError, open_store
from durable_redis import RedisStore
from tests.servers.proxy import Proxy, proxied
from tests.servers.redis import KEEPING, RedisServer, follow, redis_cluster, redis_pair, redis_server

pytestmark = pytest.mark.asyncio


def entry(step_id: str = "step", run_id: str = "run", result: bytes = b"1") -> StepRecord:
    return StepRecord(run_id=run_id, step_id=step_id, result=result)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as started:
        yield started


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with proxied(server.port) as started:
        yield started


async def test_an_answer_lost_after_the_script_ran(server: RedisServer, proxy: Proxy) -> None:
    """The connection is cut between the script and its answer: there is exactly one record, with the first value."""
    async with open_store(f"redis://127.0.0.1:{proxy.port}/0") as store:
        await store.append(entry("warm"))
        for lost in (1, 2):
            record = entry(f"lost {lost}", result=b'"first"')
            proxy.lose_answers(lost)
            try:
                held = await store.append(record)
            except StoreError as error:
                assert "append it again" in str(error)  # noqa: PT017 - one lost answer may be hidden, more may not
                held = await store.append(record)
            assert held.id == record.id
            other = await store.append(entry(f"lost {lost}", result=b'"second"'))
            assert other == record
        assert proxy.lost_answers == 3
        assert [each.step_id for each in await store.list("run")] == ["warm", "lost 1", "lost 2"]


async def test_a_batch_whose_answers_are_lost(server: RedisServer, proxy: Proxy) -> None:
    """Appends sent as one pipeline whose answer is lost are there once each, after they were appended again."""
    async with open_store(f"redis://127.0.0.1:{proxy.port}/0") as store:
        await store.append(entry("warm"))
        records = [entry(f"{number}") for number in range(100)]
        proxy.lose_answers(3)
        first = await asyncio.gather(*map(store.append, records), return_exceptions=True)
        assert any(isinstance(outcome, StoreError) for outcome in first)
        held = await asyncio.gather(*map(store.append, records))
        assert [record.id for record in held] == [record.id for record in records]
        assert len(await store.list("run")) == 101


async def test_a_connection_cut_while_idle(server: RedisServer, proxy: Proxy) -> None:
    """Connections that the server or a firewall closed while they were idle are replaced without an error."""
    async with open_store(f"redis://127.0.0.1:{proxy.port}/0") as store:
        for number in range(3):
            await store.append(entry(f"{number}"))
            proxy.cut()
        assert len(await store.list("run")) == 3


async def test_a_server_that_is_away_and_comes_back(server: RedisServer) -> None:
    """While the server is down every call raises at once; the same store works when it is back."""
    async with open_store(f"{server.url}?waitaof=1,0,5000") as store:
        record = await store.append(entry())
        server.kill()
        for call in (store.append(entry("more")), store.get("run", "step"), store.list("run"), store.clear("run")):
            started = monotonic()
            with pytest.raises(StoreError, match="no answer from the server") as refused:
                await call
            assert ("append it again" in str(refused.value)) == (call.__name__ == "append")
            assert monotonic() - started < 3
        server.start()
        assert await store.get("run", "step") == record


async def test_a_server_that_hangs(server: RedisServer) -> None:
    """A server that takes connections and answers nothing is an error after the socket's timeout, not a hang."""
    async with open_store(f"{server.url}?socket_timeout=0.2") as store:
        await store.append(entry())
        server.pause()
        started = monotonic()
        with pytest.raises(StoreError, match="no answer from the server"):
            await store.append(entry("more"))
        assert monotonic() - started < 5
        server.resume()
        await store.append(entry("more"))


async def test_a_server_that_forgot_the_script(server: RedisServer) -> None:
    """Scripts are sent again when the server has lost them, also while appends of many runs are in flight."""
    async with open_store(server.url) as store:
        forgetting = asyncio.create_task(asyncio.to_thread(_forget_scripts, server, 200))
        number = 0
        while not forgetting.done():
            records = [entry(f"{number}", f"run {run}") for run in range(60)]
            assert await asyncio.gather(*map(store.append, records)) == records
            number += 1
        assert number > 3
        for run in range(60):
            assert len(await store.list(f"run {run}")) == number


def _forget_scripts(server: RedisServer, times: int) -> None:
    for _ in range(times):
        server.command("SCRIPT", "FLUSH")


async def test_a_full_server(server: RedisServer) -> None:
    """At maxmemory an append is refused with what to do, alone and in a batch; nothing was written, and it goes on with room."""
    async with open_store(server.url) as store:
        await store.append(entry("before"))
        server.command("CONFIG", "SET", "maxmemory", 1)
        record = entry()
        with pytest.raises(StoreError, match=r"server is full .* raise its maxmemory"):
            await store.append(record)
        batch = [entry(f"batch {number}") for number in range(60)]
        refused = await asyncio.gather(*map(store.append, batch), return_exceptions=True)
        assert all("server is full" in str(error) for error in refused)
        assert [each.step_id for each in await store.list("run")] == ["before"]
        server.command("CONFIG", "SET", "maxmemory", 0)
        assert await store.append(record) is record
        assert await asyncio.gather(*map(store.append, batch)) == batch


async def test_a_key_that_holds_something_else(server: RedisServer) -> None:
    """A key of ours with another's data is an error that names it; the data stay, and a batch's other runs are recorded."""
    server.command("SET", "durable:{text}:log", "precious")
    server.command("HSET", "durable:{hash}:log", "their", "precious")
    async with open_store(server.url) as store:
        for run_id in ("text", "hash"):
            key = f"durable:{{{run_id}}}:log contains something that this store did not write"
            with pytest.raises(StoreError, match=key):
                await store.append(entry(run_id=run_id))
            with pytest.raises(StoreError, match=key):
                await store.list(run_id)
            with pytest.raises(StoreError, match=key):
                await store.clear(run_id)
        runs = ("text", *(f"run {number}" for number in range(30)), "hash")
        outcomes = await asyncio.gather(*(store.append(entry(run_id=run_id)) for run_id in runs), return_exceptions=True)
        assert [run for run, outcome in zip(runs, outcomes, strict=True) if isinstance(outcome, StoreError)] == ["text", "hash"]
        assert {run async for run in store.runs("run")} == set(runs[1:-1])
    assert server.command("GET", "durable:{text}:log") == b"precious"
    assert server.command("HGETALL", "durable:{hash}:log") == {b"their": b"precious"}


async def test_a_replica_is_refused() -> None:
    """A store on a read-only replica says that it needs the primary."""
    with redis_pair(*KEEPING) as (_, replica):
        async with open_store(replica.url) as store:
            with pytest.raises(StoreError, match=r"replica .*connect to the primary"):
                await store.append(entry())


@pytest.mark.parametrize("options", ["", "?wait=1,1000"])
async def test_an_address_that_leads_to_the_new_primary(options: str) -> None:
    """After a failover behind one address, connections to what is a replica by now are given up, for one append or many."""
    with redis_pair(*KEEPING) as (old, new), proxied(old.port) as proxy:
        async with open_store(f"redis://127.0.0.1:{proxy.port}/0{options}") as store:
            await asyncio.gather(*(store.append(entry(f"{number}")) for number in range(30)))
            proxy.target = new.port
            new.command("REPLICAOF", "NO", "ONE")
            follow(old, new)
            with pytest.raises(StoreError, match="connect to the primary"):
                await store.append(entry("next"))
            await asyncio.gather(*(store.append(entry(f"later {number}")) for number in range(30)))
            assert len(await store.list("run")) == 60


async def test_a_cluster_met_unawares() -> None:
    """A URL without `cluster=true` that leads to a cluster's node says what to add."""
    with redis_cluster(*KEEPING) as nodes:
        async with open_store(nodes[0].url) as store:
            appends = (store.append(entry(run_id=f"run {number}")) for number in range(30))
            with pytest.raises(StoreError, match="add cluster=true"):
                await asyncio.gather(*appends)


async def test_a_client_that_decodes(server: RedisServer) -> None:
    """A ready client with `decode_responses` works, and is left open."""
    async with Redis.from_url(server.url, decode_responses=True) as client:
        async with RedisStore(client) as store:
            record = await store.append(entry(result='"é\u2028😀"'.encode()))
            await store.append(entry("é"))
            assert await store.append(entry()) == record
            assert await store.get("run", "step") == record
            assert next(iter(await store.list("run"))) == record
            assert [run async for run in store.runs()] == ["run"]
            async with store.lock("run") as lease:
                lease.check()
        assert await client.ping()


async def test_cancelled_appends_leave_the_connection_in_order(server: RedisServer) -> None:
    """Answers to calls that were cancelled are never taken for those to later calls."""
    async with open_store(f"{server.url}?max_connections=2") as store:
        await store.append(entry("warm"))
        for number in range(40):
            calls = [
                asyncio.ensure_future(store.append(entry(f"{number}", f"run {number} {run}", b"%d" % run))) for run in range(4)
            ]
            for _ in range(number % 8):
                await asyncio.sleep(0)
            calls[number % 4].cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            for run in range(4):
                run_id = f"run {number} {run}"
                if (found := await store.get(run_id, f"{number}")) is not None:
                    assert (found.run_id, found.result) == (run_id, b"%d" % run)


async def test_connections_that_the_server_closed(server: RedisServer) -> None:
    """A server that closes its idle connections is no failure, neither to an append nor to a read."""
    async with open_store(server.url) as store:
        for number in range(3):
            record = await store.append(entry(f"{number}"))
            assert await store.get("run", f"{number}") == record
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_no_more_connections_than_asked_for(server: RedisServer) -> None:
    """`max_connections` bounds what is connected, however many calls there are at once."""
    for limit in (1, 2, 5):
        async with open_store(f"{server.url}?max_connections={limit}&client_name=store-{limit}") as store:
            await asyncio.gather(*(store.append(entry(f"{number}", f"run {number}")) for number in range(100)))
            await asyncio.gather(*(store.list(f"run {number}") for number in range(100)))
            await store.append(entry("last"))
            listed = server.command("CLIENT", "LIST")
            assert 1 <= listed.count(f"name=store-{limit} ".encode()) <= limit


@pytest.mark.parametrize("replicas", [0, 1])
async def test_a_primary_that_was_demoted(replicas: int) -> None:
    """A server that became a replica answers no reads, whatever else it lacks: its new primary may have returned more."""
    with redis_server(*KEEPING) as old, redis_server(*KEEPING) as new:
        async with open_store(old.url) as store:
            await store.append(entry())
            old.command("CONFIG", "SET", "min-replicas-to-write", replicas)
            follow(old, new)
            for read in (lambda: store.get("run", "step"), lambda: store.list("run")):
                with pytest.raises(StoreError, match="replica.*connect to the primary"):
                    await read()


async def test_a_server_that_refuses_writes(server: RedisServer) -> None:
    """A primary without its replicas refuses appends and reads with an error that says why, and goes on once it has them."""
    async with open_store(server.url) as store:
        record = await store.append(entry())
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        for call in (lambda: store.append(entry("more")), lambda: store.get("run", "step"), lambda: store.list("run")):
            with pytest.raises(StoreError, match=r"refused to work on durable:\{run\}:log: NOREPLICAS"):
                await call()
        server.command("CONFIG", "SET", "min-replicas-to-write", 0)
        assert await store.append(entry()) == await store.get("run", "step") == record


async def test_a_full_server_is_cleared() -> None:
    """At maxmemory a run can be cleared to make room, also where copies are waited for, and cleared again."""
    with redis_pair(*KEEPING) as (server, _):
        for options in ("", "?wait=1,5000"):
            async with open_store(f"{server.url}{options}") as store:
                await store.append(entry())
                server.command("CONFIG", "SET", "maxmemory", 1)
                for _ in range(2):
                    await store.clear("run")
                    assert list(await store.list("run")) == []
                server.command("CONFIG", "SET", "maxmemory", 0)


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_while_appends_are_in_flight(server: RedisServer, count: int) -> None:
    """An append that a close overtakes fails with an error that says what to do; the store can be entered again."""
    async with open_store(server.url) as store:
        await store.append(entry("warm"))
        server.pause()
        calls = [asyncio.ensure_future(store.append(entry(f"{number}"))) for number in range(count)]
        for _ in range(20):
            await asyncio.sleep(0)
    server.resume()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, StoreError)
        assert "the store was closed" in str(outcome)
        assert "append it again" in str(outcome)
    async with store:
        for number in range(count):
            await store.append(entry(f"{number}"))
        assert len(await store.list("run")) == 1 + count


@pytest.mark.parametrize("options", ["", "?cluster=true"])
async def test_closing_over_reads_leaves_no_connection(options: str) -> None:
    """Reads that a close overtakes are answered on new connections, and none of them stays open."""
    with ExitStack() as stack:
        servers = stack.enter_context(redis_cluster(*KEEPING) if options else redis_server(*KEEPING))
        nodes = servers if isinstance(servers, list) else [servers]
        async with open_store(f"{nodes[0].url}{options}{'&' if options else '?'}client_name=closing") as store:
            records = await asyncio.gather(*(store.append(entry(run_id=f"run {number}")) for number in range(10)))
            await store.list("run 0")
            for node in nodes:
                node.pause()
            calls = [asyncio.ensure_future(store.list(f"run {number}")) for number in range(10)]
            for _ in range(20):
                await asyncio.sleep(0)
            for node in nodes:
                node.resume()
        assert await asyncio.gather(*calls) == [[record] for record in records]
        assert not any(b"name=closing " in node.command("CLIENT", "LIST") for node in nodes)
