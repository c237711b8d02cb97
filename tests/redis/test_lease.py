"""A run's lock: renewed while it is held, released by its owner alone, and lost where everyone can see it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from time import monotonic, sleep

import pytest
from redis.asyncio import ConnectionPool, Redis, RedisCluster

from durable_core import LockLost, RunBusy, Runner, StepRecord, StoreError
from durable_redis import RedisStore
from tests.servers.ports import free_port
from tests.servers.proxy import Proxy, proxied
from tests.servers.redis import KEEPING, RedisServer, redis_cluster, redis_pair, redis_server

pytestmark = pytest.mark.asyncio
LOCK = "durable:{run}:lock"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as started:
        yield started


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    with proxied(server.port) as started:
        yield started


def opened(port: int, options: str = "lease=1") -> RedisStore:
    return RedisStore.from_url(f"redis://127.0.0.1:{port}/0?{options}")


async def lost(check: Callable[[], None], match: str, *, within: float) -> None:
    """Return once `check` raises `LockLost` for the reason to `match`."""
    async with asyncio.timeout(within):
        while True:
            try:
                check()
            except LockLost as error:
                if match in str(error):
                    return
            await asyncio.sleep(0.01)


async def test_a_lock_that_the_server_forgot(server: RedisServer) -> None:
    """A lock whose key is gone is lost at the next renewal, and is not taken again behind the back of a new holder."""
    async with opened(server.port) as store, store.lock("run") as lease:
        server.command("DEL", LOCK)
        await lost(lease.check, "another holder took it over, or the store forgot it", within=0.9)
        async with store.lock("run") as second:
            second.check()
            with pytest.raises(LockLost):
                lease.check()


async def test_a_lock_that_another_holds_now(server: RedisServer) -> None:
    """A holder who lost the lock neither renews nor releases that of the next."""
    async with opened(server.port) as store, opened(server.port) as other:
        first = store.lock("run")
        lease = await first.__aenter__()
        server.command("DEL", LOCK)
        async with other.lock("run") as second:
            await lost(lease.check, "another holder took it over, or the store forgot it", within=0.9)
            await first.__aexit__(None, None, None)
            second.check()
            with pytest.raises(RunBusy):
                async with store.lock("run"):
                    pass


async def test_a_server_that_is_away_for_longer_than_the_lease(server: RedisServer, proxy: Proxy) -> None:
    """Without renewals the lock is lost before the server can give it to another, and stays lost when the server is back."""
    options = "lease=1&socket_timeout=0.5"
    async with opened(server.port) as other, opened(proxy.port, options) as store, store.lock("run") as lease:
        proxy.refusing = True
        proxy.cut()
        await lost(lease.check, "not renewed within 1 s", within=2)
        with pytest.raises(StoreError):
            await store.list("run")
        async with asyncio.timeout(2):
            while True:
                try:
                    async with other.lock("run"):
                        break
                except RunBusy:
                    await asyncio.sleep(0.01)
        proxy.refusing = False
        await store.list("run")
        with pytest.raises(LockLost):
            lease.check()


async def test_a_short_outage(server: RedisServer, proxy: Proxy) -> None:
    """An outage shorter than the lease goes unnoticed by the holder: a renewal that failed is made up for."""
    async with opened(proxy.port, "lease=6") as store, store.lock("run") as lease:
        for _ in range(2):
            proxy.refusing = True
            proxy.cut()
            refused = proxy.refused
            while proxy.refused == refused:
                await asyncio.sleep(0.01)
            proxy.refusing = False
            server.command("PEXPIRE", LOCK, 3_000)
            while server.command("PTTL", LOCK) <= 3_000:
                lease.check()
                await asyncio.sleep(0.01)


async def test_an_answer_lost_while_the_lock_was_taken(server: RedisServer, proxy: Proxy) -> None:
    """A lock whose answer was lost is held, or free again: never held by nobody."""
    async with opened(proxy.port) as store, opened(server.port) as other:
        async with store.lock("run"):
            pass
        proxy.lose_answers(1)
        async with store.lock("run") as lease:  # the driver asks again, and finds the lock to be its own
            lease.check()
        proxy.lose_answers(2)
        with pytest.raises(StoreError):
            async with store.lock("run"):
                pass
        async with other.lock("run"):
            pass


async def test_a_server_that_was_never_there(caplog: pytest.LogCaptureFixture) -> None:
    """Where the server can't be reached no lock was taken and nothing appended, and nothing says so."""
    async with opened(free_port()) as store:
        with pytest.raises(StoreError, match=r"^no answer from the server \(.*\); is it up\? check .* the URL") as refused:
            async with Runner(store, "run"):
                pass
        assert "append" not in str(refused.value)
        with pytest.raises(StoreError, match=r"no answer from the server \(.*\); is it up\?") as refused:
            await store.append(StepRecord(run_id="run", step_id="step"))
        assert "append" not in str(refused.value)
    assert caplog.text == ""


async def test_a_server_that_went_away_before_the_lock(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """A request that may have reached the server may have taken the lock: that much is logged, and not that it was taken."""
    async with opened(server.port) as store:
        assert await store.list("run") == []
        server.kill()
        with pytest.raises(StoreError, match="no answer from the server") as refused:
            async with Runner(store, "run"):
                pass
        assert "append" not in str(refused.value)
        assert "the lock of run 'run' was not given back; if it was taken, it runs out within 1 s: no answer" in caplog.text


async def test_a_lock_that_could_not_be_given_back(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """A lock that was held when the server went away is one that expires."""
    async with opened(server.port) as store, store.lock("run"):
        server.kill()
    assert "the lock of run 'run' was not given back; if it was taken, it runs out within 1 s: no answer" in caplog.text


async def test_many_runs_that_begin_at_once_on_a_new_store(server: RedisServer) -> None:
    """Its first use may be a thousand locks at once: they don't need a connection each."""
    pool = ConnectionPool.from_url(f"redis://127.0.0.1:{server.port}/0", max_connections=12)
    async with Redis.from_pool(pool) as client, RedisStore(client) as store, AsyncExitStack() as stack:
        leases = await asyncio.gather(*(stack.enter_async_context(store.lock(f"run-{number}")) for number in range(200)))
        for lease in leases:
            lease.check()


async def test_a_cancelled_wait_for_the_lock(server: RedisServer) -> None:
    """Taking a lock can be cancelled at any moment; it is free afterwards."""
    async with opened(server.port, "lease=60") as store:
        await store.list("run")

        async def take() -> None:
            async with store.lock("run"):
                await asyncio.Event().wait()

        for steps in range(25):
            task = asyncio.ensure_future(take())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert server.command("EXISTS", LOCK) == 0


async def test_a_lock_waits_for_its_copies() -> None:
    """With `wait`, a lock is given, and counts as renewed, once the replica knows it too."""
    with redis_pair(*KEEPING) as (primary, replica):
        async with opened(primary.port, "lease=1&wait=1,200") as store:
            async with store.lock("run") as lease:
                assert replica.command("GET", LOCK) == primary.command("GET", LOCK)
                replica.pause()
                await lost(lease.check, "not renewed within 1 s", within=2)
            with pytest.raises(StoreError, match="WAIT found 0 of 1"):
                async with store.lock("run"):
                    pass
            replica.resume()
            async with store.lock("run") as lease:
                lease.check()


async def test_a_lock_key_set_by_something_else(server: RedisServer) -> None:
    """Whatever holds the key, `RunBusy` can be raised from it."""
    server.command("SET", LOCK, "mine")
    async with opened(server.port) as store:
        with pytest.raises(RunBusy, match=r"something else that set its key .*mine"):
            async with store.lock("run"):
                pass
    server.command("DEL", LOCK)
    server.command("HSET", LOCK, "a", "b")
    async with opened(server.port) as store:
        with pytest.raises(StoreError, match="contains something that this store did not write"):
            async with store.lock("run"):
                pass


async def test_the_log_outlives_its_ttl_while_the_lock_is_held(server: RedisServer) -> None:
    """A step that takes longer than the run's `ttl` doesn't lose the steps before it."""
    log = "durable:{run}:log"
    async with opened(server.port, "lease=1&ttl=3") as store, store.lock("run"):
        await store.append(StepRecord(run_id="run", step_id="step"))
        for _ in range(2):
            server.command("PEXPIRE", log, 2_000)
            while server.command("PTTL", log) <= 2_000:
                assert len(await store.list("run")) == 1
                await asyncio.sleep(0.01)


async def test_taking_the_lock_renews_the_ttl(server: RedisServer) -> None:
    """A run that is resumed just before it expires keeps the steps that its runner goes on from."""
    async with opened(server.port, "lease=60&ttl=100") as store:
        await store.append(StepRecord(run_id="run", step_id="step"))
        server.command("PEXPIRE", "durable:{run}:log", 5_000)
        async with store.lock("run"):
            assert server.command("PTTL", "durable:{run}:log") > 90_000
        await store.append(StepRecord(run_id="run", step_id="approval", status="waiting"))
        async with store.lock("run"):
            assert server.command("PTTL", "durable:{run}:log") == -1


async def test_the_lock_says_who_holds_it(server: RedisServer) -> None:
    """The key's value is JSON for people: the process, its machine, and since when."""
    async with opened(server.port) as store, store.lock("run"):
        value = json.loads(server.command("GET", LOCK))
        assert f"process {os.getpid()} on " in value["holder"]
        assert 0 < server.command("PTTL", LOCK) <= 1000


async def test_a_cancellation_while_a_lock_is_given_back(server: RedisServer) -> None:
    """Whoever is cancelled on the way out of the lock stays cancelled, and gives the lock back all the same."""
    async with opened(server.port) as store:

        async def work() -> None:
            async with store.lock("run"):
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)

        task = asyncio.create_task(work())
        await asyncio.wait({task})
        assert task.cancelled()
        async with store.lock("run") as lease:
            lease.check()


async def test_a_lock_whose_taker_is_cancelled_again_and_again(server: RedisServer) -> None:
    """However often a task is cancelled while it takes, holds or gives back a lock, the lock is free once the task has ended."""
    async with opened(server.port, "lease=60") as store:

        async def hold() -> None:
            async with store.lock("run"):
                await asyncio.sleep(0)

        await hold()
        for first in range(12):
            for more in range(1, 4):
                task = asyncio.create_task(hold())
                for _ in range(first):
                    await asyncio.sleep(0)
                for _ in range(3):
                    task.cancel()
                    for _ in range(more):
                        await asyncio.sleep(0)
                await asyncio.wait({task})
                assert server.command("EXISTS", LOCK) == 0


async def test_a_short_ttl_makes_no_storm_of_renewals(server: RedisServer) -> None:
    """Renewals keep a pause between them, however short the ttl."""
    async with opened(server.port, "ttl=0.001") as store:
        await store.append(StepRecord(run_id="run", step_id="step", status="waiting"))
        async with store.lock("run"):
            server.command("CONFIG", "RESETSTAT")
            began = monotonic()
            while (calls := renewals(server)) < 5:
                await asyncio.sleep(0.01)
            assert calls <= 1 + (monotonic() - began) / 0.02


def renewals(server: RedisServer) -> int:
    return int(server.command("INFO", "commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


async def test_a_given_client_of_a_cluster_renews_from_a_thread() -> None:
    """The thread's own client has the settings of the one that was given."""
    with redis_cluster(*KEEPING) as nodes:
        client = RedisCluster.from_url(nodes[0].url, client_name="mine", reinitialize_steps=0)
        async with client, RedisStore(client, lease=1.5) as store, store.lock("run") as lease:
            sleep(3)
            lease.check()
            assert sum(node.command("CLIENT", "LIST").count(b"name=mine ") for node in nodes) >= 2
