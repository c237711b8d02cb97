"""Wake-ups outlive what dies, and are kept in order by the server's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

import pytest

from durable_core import StepRecord, StoreError, open_store
from durable_core.store import WakeUp
from durable_core.testing import OpenStore
from durable_core.testing._processes import Child, Pipe
from durable_redis import RedisStore
from tests.servers.proxy import proxied
from tests.servers.redis import KEEPING, RedisServer, redis_pair, redis_server

pytestmark = pytest.mark.asyncio

LONG = timedelta(minutes=10)
KEY = "durable:{flow}:wakeups"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as started:
        yield started


def opened(url: str) -> RedisStore:
    store = open_store(url)
    assert isinstance(store, RedisStore)
    return store


def past(seconds: float = 1) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


async def take(store: RedisStore, hidden: timedelta = LONG, flow: str = "flow") -> Sequence[WakeUp]:
    return await store.take_wakeups([flow], limit=100, visibility_timeout=hidden)


async def take_soon(store: RedisStore) -> Sequence[WakeUp]:
    deadline = monotonic() + 30
    while not (taken := await take(store)):
        assert monotonic() < deadline, "nothing was shown in time"
        await asyncio.sleep(0.01)
    return taken


async def test_wakeups_outlive_the_server(server: RedisServer) -> None:
    """The server is killed between set and take, and between take and clear: what was set is there, what is hidden stays so."""
    async with opened(f"{server.url}?waitaof=1,0,5000") as store:
        mine = await store.set_wakeup("run", "flow", past())
        server.kill()
        server.start()
        (taken,) = await take(store)
        assert (taken.token, taken.run_id, taken.at) == (mine.token, mine.run_id, mine.at)
        await store.append(StepRecord(run_id="run", step_id="step"))  # waits until all so far is on disk
        server.kill()
        server.start()
        assert not await take(store)
        await store.clear_wakeups([taken])
        assert not server.command("EXISTS", KEY)


async def test_a_process_killed_between_take_and_clear(redis_url: str) -> None:
    """What it had taken is shown again, after the visibility timeout and with the same token."""
    async with opened(redis_url) as store:
        mine = await store.set_wakeup("run", "flow", past())
        async with Child(_take_and_wait, partial(open_store, redis_url)) as child:
            taken = await child.receive()
            assert taken.token == mine.token
            await child.kill()
        (again,) = await take_soon(store)
        assert (again.token, again.at) == (mine.token, mine.at)
        assert again.now >= taken.now + timedelta(seconds=1)


async def _take_and_wait(pipe: Pipe, open_store: OpenStore) -> None:
    async with open_store() as store:
        assert isinstance(store, RedisStore)
        (taken,) = await take(store, timedelta(seconds=1))
        await pipe.send(taken)
        await pipe.receive()


async def test_set_waits_for_its_copies() -> None:
    """A wake-up that lacks the copies asked for is not returned; also one that is written again after a lost answer."""
    with redis_pair(*KEEPING) as (primary, replica), proxied(primary.port) as proxy:
        async with opened(f"redis://127.0.0.1:{proxy.port}/0?wait=1,300") as store:
            await store.set_wakeup("run", "flow", past())
            assert replica.command("ZCARD", KEY) == 1
            replica.pause()
            with pytest.raises(StoreError, match="WAIT found 0 of 1 copies"):
                await store.set_wakeup("run", "flow", past())
            proxy.lose_answers(1)  # the client sends all again, on another connection
            with pytest.raises(StoreError, match="WAIT found 0 of 1 copies"):
                await store.set_wakeup("run", "flow", past())
            assert proxy.lost_answers == 1
            # What it takes and clears is worth no wait: it may be shown again.
            await store.clear_wakeups(await take(store))
            replica.resume()


async def test_a_server_that_forgot_the_scripts(server: RedisServer) -> None:
    """Scripts are sent again to a server that has lost them."""
    async with opened(server.url) as store:
        for _ in range(2):
            server.command("SCRIPT", "FLUSH")
            await store.set_wakeup("run", "flow", past())
            server.command("SCRIPT", "FLUSH")
            taken = await take(store)
            server.command("SCRIPT", "FLUSH")
            await store.clear_wakeups(taken)
            assert not server.command("EXISTS", KEY)


async def test_a_server_that_is_away(server: RedisServer) -> None:
    """While the server is down each call raises at once; the same store goes on when it is back."""
    async with opened(server.url) as store:
        mine = await store.set_wakeup("run", "flow", past())
        server.kill()
        for call in (store.set_wakeup("run", "flow", past()), take(store), store.clear_wakeups([mine])):
            with pytest.raises(StoreError, match="no answer from the server"):
                await call
        server.start()
        assert [each.token for each in await take(store)] == [mine.token]


async def test_a_full_server(server: RedisServer) -> None:
    """At maxmemory setting is refused; what is there is taken and cleared, which makes room."""
    async with opened(server.url) as store:
        mine = await store.set_wakeup("run", "flow", past())
        server.command("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(StoreError, match=r"server is full .* raise its maxmemory"):
            await store.set_wakeup("run", "flow", past())
        taken = await take(store)
        assert [each.token for each in taken] == [mine.token]
        await store.clear_wakeups(taken)
        assert not server.command("EXISTS", KEY)


async def test_a_ttl_is_that_of_runs(server: RedisServer) -> None:
    """Wake-ups have no time to live: they are there when the runs around them have expired."""
    async with opened(f"{server.url}?ttl=0.1") as store:
        mine = await store.set_wakeup("run", "flow", past())
        await store.append(StepRecord(run_id="run", step_id="step"))
        deadline = monotonic() + 30
        while len(await store.list("run")):
            assert monotonic() < deadline
            await asyncio.sleep(0.01)
        assert server.command("PTTL", KEY) == -1
        assert [each.token for each in await take(store)] == [mine.token]
        assert server.command("PTTL", KEY) == -1


async def test_a_run_that_was_asked_for_does_not_expire(server: RedisServer) -> None:
    """A run with a wake-up for later, whose flow waits for its turn, is kept until a worker begins it."""
    async with opened(f"{server.url}?ttl=100") as store:
        await store.set_wakeup("run", "flow", datetime.now(UTC) + timedelta(days=1))
        await store.append(StepRecord(run_id="run", step_id="$flow", kind="flow", status="waiting"))
        assert server.command("PTTL", "durable:{run}:log") == -1


async def test_now_is_the_servers_clock(redis_url: str) -> None:
    """A wake-up tells the server's time, to the microsecond, when it was set and when it was taken."""
    async with opened(redis_url) as store:
        before = await _time(store)
        mine = await store.set_wakeup("run", "flow", past())
        between = await _time(store)
        (taken,) = await take(store)
        assert before <= mine.now <= between <= taken.now <= await _time(store)


async def _time(store: RedisStore) -> datetime:
    client: Any = store._client
    seconds, microseconds = await client.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


async def test_times_a_microsecond_apart(redis_url: str) -> None:
    """What is due a microsecond longer comes first, on one flow and over two; a time far away is kept exactly."""
    async with opened(redis_url) as store:
        start = past(10)
        for number in (3, 1, 2, 0):
            await store.set_wakeup(f"{number}", f"flow {number % 2}", start + number * timedelta(microseconds=1))
        last = await store.set_wakeup("last", "flow 0", datetime.max.replace(tzinfo=UTC))
        first = await store.set_wakeup("first", "flow 1", datetime.min.replace(tzinfo=UTC))
        taken = await store.take_wakeups(["flow 0", "flow 1", "flow 0"], limit=9, visibility_timeout=LONG)
        assert [each.run_id for each in taken] == ["first", "0", "1", "2", "3"]
        assert (last.at, taken[0].at) == (datetime.max.replace(tzinfo=UTC), first.at)


async def test_who_finds_all_taken_looks_again(redis_url: str) -> None:
    """Stores that take at the same moment, one each, all get one while there are enough."""
    stores = [opened(redis_url) for _ in range(3)]
    try:
        for round_ in range(20):
            for number in range(30):
                await stores[0].set_wakeup(f"run {round_} {number}", "flow", past())
            taken = await asyncio.gather(*(store.take_wakeups(["flow"], limit=2, visibility_timeout=LONG) for store in stores))
            assert all(taken)
    finally:
        for store in stores:
            await store.__aexit__(None, None, None)


async def test_a_member_that_is_no_wakeup(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """What somebody else put among the wake-ups hides none of them; the log names it."""
    async with opened(server.url) as store:
        await store.set_wakeup("run", "flow", past())
        for member in ("theirs", b"\xff", "a\x1fb\x1fc", f"a\x1f{10**40}\x1fc"):
            server.command("ZADD", KEY, 1, member)
        assert [each.run_id for each in await take(store)] == ["run"]
        assert f"{KEY} holds b'theirs', which is not a wake-up: remove it" in caplog.text


async def test_a_key_that_holds_something_else(server: RedisServer) -> None:
    """A key of ours with another's data is an error that names it, and harms no wake-up of other flows."""
    server.command("SET", KEY, "precious")
    async with opened(server.url) as store:
        calls = [store.set_wakeup("run", flow, past()) for flow in ("flow", "other", "flow", "another", "other")]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(outcome, StoreError) for outcome in outcomes] == [True, False, True, False, False]
        with pytest.raises(StoreError, match=r"durable:\{flow\}:wakeups contains something"):
            await take(store)
        assert len(await take(store, flow="other")) == 2
    assert server.command("GET", KEY) == b"precious"


async def test_a_time_without_zone(redis_url: str) -> None:
    """A naive time is refused before anything is written."""
    async with opened(redis_url) as store:
        with pytest.raises(ValueError, match="has no time zone; give an aware datetime"):
            await store.set_wakeup("run", "flow", datetime(2020, 1, 1))
        assert not await take(store)
