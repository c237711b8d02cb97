"""Watches share one connection, go on when it is lost, and leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from durable_core import StepRecord, StoreError, open_store
from durable_redis import RedisStore
from tests.servers.proxy import proxied
from tests.servers.redis import KEEPING, RedisServer, redis_cluster, redis_pair, redis_sentinel, redis_server

pytestmark = pytest.mark.asyncio

SECONDS = 30


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as started:
        yield started


def opened(url: str) -> RedisStore:
    store = open_store(url)
    assert isinstance(store, RedisStore)
    return store


def entry(run_id: str = "run", revision: int = 0) -> StepRecord:
    return StepRecord(run_id=run_id, step_id="step", revision=revision)


class Told:
    """Counts what one watch yields."""

    def __init__(self, watch: AsyncIterator[None]) -> None:
        self.count = 0
        self._new = asyncio.Event()
        self._watch = watch
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for _ in self._watch:
            self.count += 1
            self._new.set()

    async def again(self) -> None:
        """Wait until it has yielded since the last call."""
        async with asyncio.timeout(SECONDS):
            await self._new.wait()
        self._new.clear()


@asynccontextmanager
async def watching(store: RedisStore, run_id: str = "run") -> AsyncIterator[Told]:
    """Watch a run, from when it listens on."""
    told = Told(store.watch(run_id))
    try:
        await told.again()
        yield told
    finally:
        told.task.cancel()
        await asyncio.wait([told.task])


def listeners(server: RedisServer) -> int:
    return len(server.command("CLIENT", "LIST", "TYPE", "pubsub").splitlines())


async def until(true: Callable[[], bool]) -> None:
    deadline = monotonic() + SECONDS
    while not true():
        assert monotonic() < deadline, "not so in time"
        await asyncio.sleep(0.01)


def listening_tasks() -> int:
    return sum(task.get_name() == "durable-redis-watches" for task in asyncio.all_tasks())


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_server_that_is_killed(server: RedisServer, protocol: int) -> None:
    """The watch goes on when the server is back: it yields as it listens anew, and hears of what is appended then."""
    async with opened(f"{server.url}?protocol={protocol}") as store, watching(store) as told:
        for revision in range(3):
            server.kill()
            server.start()
            await told.again()
            await store.append(entry(revision=revision))
            await told.again()
        assert told.count >= 7


async def test_a_server_that_is_away_at_first(server: RedisServer) -> None:
    """A watch that begins while the server is down begins to listen once it is up."""
    server.kill()
    async with opened(server.url) as store:
        told = Told(store.watch("run"))
        await until(lambda: listening_tasks() == 1)
        server.start()
        await told.again()


async def test_a_connection_that_is_cut(server: RedisServer) -> None:
    """Each watch yields once as it listens anew, since something may have happened meanwhile; no other one is needed."""
    with proxied(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with opened(url) as store, watching(store, "one") as one, watching(store, "two") as two:
            proxy.cut()
            await one.again()
            await two.again()
            await store.append(entry("one"))
            await one.again()
            assert (one.count, two.count) == (3, 2)


async def test_a_connection_that_is_dead(server: RedisServer) -> None:
    """A connection on which nothing comes, not even the answer to a PING, is given up."""
    with proxied(server.port) as proxy:
        async with opened(f"redis://127.0.0.1:{proxy.port}/0?health_check_interval=1") as store, watching(store) as told:
            proxy.hold_answers()
            await told.again()


async def test_a_quiet_connection_is_kept(server: RedisServer) -> None:
    """A connection on which nothing happens for long stays: the server answers PINGs."""
    async with opened(f"{server.url}?health_check_interval=1&socket_timeout=0.5") as store, watching(store) as told:
        server.command("CONFIG", "RESETSTAT")
        await until(lambda: server.command("INFO", "commandstats").get("cmdstat_ping", {"calls": 0})["calls"] > 3)
        assert told.count == 1


async def test_a_thousand_watches(server: RedisServer) -> None:
    """Watches of one store share one connection; each hears of its own run, and all end with the store."""
    async with opened(server.url) as store, opened(server.url) as other:
        tolds = [Told(store.watch(f"run {number}")) for number in range(1000)]
        await asyncio.gather(*(told.again() for told in tolds))
        assert listeners(server) == 1
        assert listening_tasks() == 1
        assert len(server.command("PUBSUB", "CHANNELS")) == 1000
        await asyncio.gather(*(other.append(entry(f"run {number}")) for number in range(0, 1000, 2)))
        await asyncio.gather(*(told.again() for told in tolds[::2]))
        assert {told.count for told in tolds[1::2]} == {1}
        await store.__aexit__(None, None, None)
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(told.task for told in tolds))  # ended, without an error
        assert listening_tasks() == 0
        await until(lambda: listeners(server) == 0)


async def test_what_nobody_watches_is_left(server: RedisServer) -> None:
    """The last watch of a run ends its subscription, and the last of all the connection; watching begins anew after that."""
    async with opened(server.url) as store:
        for revision in range(2):
            async with watching(store, "one"):
                async with watching(store, "two"), watching(store, "two"):
                    assert len(server.command("PUBSUB", "CHANNELS")) == 2
                await until(lambda: server.command("PUBSUB", "CHANNELS") == [b"durable:{one}:log"])
                async with watching(store, "two") as two:
                    await store.append(entry("two", revision))
                    await two.again()
            await until(lambda: listeners(server) == 0)
            assert listening_tasks() == 0


async def test_a_watch_that_is_left_by_break(server: RedisServer) -> None:
    """A loop over a watch that is broken off leaves no subscription."""
    async with opened(server.url) as store:
        async for _ in store.watch("run"):
            break
        await until(lambda: listeners(server) == 0)


async def test_closing_ends_watches_of_a_client_that_was_given(server: RedisServer) -> None:
    """The watches end with the store, and its client goes on; so does the store, whose next watch works."""
    async with Redis.from_url(server.url, decode_responses=True) as client:
        store = RedisStore(client)
        for revision in range(2):
            async with store:
                told = Told(store.watch("run"))
                await told.again()
                await store.append(entry(revision=revision))
                await told.again()
            async with asyncio.timeout(SECONDS):
                await told.task
            assert listening_tasks() == 0
        assert await client.ping()


async def test_a_user_without_channels(server: RedisServer) -> None:
    """Who may not use the channel appends all the same, and its watch ends at once."""
    server.command("ACL", "SETUSER", "mute", "on", ">secret", "~durable:*", "resetchannels", "+@all")
    async with opened(server.url.replace("://", "://mute:secret@")) as store:
        record = entry()
        assert await store.append(record) is record
        assert await store.append(entry()) == record
        async with asyncio.timeout(SECONDS):
            assert [None async for _ in store.watch("run")] == []
    async with opened(server.url) as other:
        assert len(await other.list("run")) == 1


async def test_the_least_rights(server: RedisServer) -> None:
    """A user with the rights that the documentation lists can do all of this."""
    rights = (
        "~durable:* &durable:* -@all +eval +evalsha +hget +hmget +hset +hdel +hincrby +exists +unlink +zadd +zrem +zrange +zscore"
        " +get +set +del +persist +pexpire +scan +time +wait +waitaof +publish +subscribe +unsubscribe +ping"
    )
    server.command("ACL", "SETUSER", "durable", "on", ">secret", "resetkeys", "resetchannels", *rights.split())
    url = server.url.replace("://", "://durable:secret@") + "?health_check_interval=1"
    async with opened(url) as store, watching(store) as told:
        await store.append(entry())
        await told.again()


async def test_a_telling_costs_no_request(server: RedisServer) -> None:
    """An append that is told is one call of the server, as any other."""
    async with opened(server.url) as store:
        await store.append(entry())
        server.command("CONFIG", "RESETSTAT")
        await store.append(entry(revision=1))
        stats = server.command("INFO", "commandstats")
        assert (stats["cmdstat_evalsha"]["calls"], stats["cmdstat_publish"]["calls"]) == (1, 1)


async def test_sentinels_primary() -> None:
    """A store around Sentinel's client watches at the primary."""
    with redis_pair(*KEEPING) as (primary, _), redis_sentinel(primary) as sentinel:
        sentinels = Sentinel([("127.0.0.1", sentinel.port)])
        client = sentinels.master_for("runs", socket_timeout=5)
        async with RedisStore(client) as store, watching(store) as told:
            await store.append(entry())
            await told.again()
        await client.aclose()
        for each in sentinels.sentinels:
            await each.aclose()


async def test_a_node_of_a_cluster_that_dies() -> None:
    """Where the node that a store listens at dies, it listens at another one."""
    with redis_cluster(*KEEPING, "--cluster-require-full-coverage", "no") as nodes:
        async with opened(f"{nodes[0].url}?cluster=true") as store, watching(store, "any"):
            (node,) = [node for node in nodes if listeners(node)]
            client: Any = store._client
            runs = (f"run {number}" for number in range(100))
            run_id = next(run for run in runs if client.get_node_from_key(f"durable:{{{run}}}:log").port != node.port)
            async with watching(store, run_id) as told:
                node.kill()
                await told.again()
                assert sum(listeners(other) for other in nodes if other is not node) == 1
                deadline = monotonic() + SECONDS
                for revision in count():  # until the client's map of the cluster is right again
                    assert monotonic() < deadline
                    with suppress(StoreError):
                        await store.append(entry(run_id, revision))
                        break
                await told.again()
