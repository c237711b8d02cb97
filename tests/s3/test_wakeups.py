"""Wake-ups on S3, which hides nothing: what holds instead of the contract's tests of hiding, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import monotonic
from uuid import uuid4

import pytest

from durable_core import Runner, StoreError, control, flow
from durable_core.store import WakeUp, wakeups_of
from durable_s3 import S3Store
from durable_worker import Worker
from tests.s3 import proxy as faults
from tests.s3.proxy import Fault, Line, Proxy
from tests.s3.support import open_at
from tests.s3.test_faults import BEFORE_OR_AFTER, IN_AN_ANSWER
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.asyncio

LONG = timedelta(minutes=10)
LONG_AGO = datetime(2026, 3, 29, 1, 59, 59, 999_999, tzinfo=UTC)


async def take(store: S3Store, *flows: str, limit: int = 100, hidden: timedelta = LONG) -> Sequence[WakeUp]:
    return await store.take_wakeups(flows or ["flow"], limit=limit, visibility_timeout=hidden)


async def tokens(store: S3Store, *, hidden: timedelta = LONG) -> list[str]:
    return [wakeup.token for wakeup in await take(store, hidden=hidden)]


@pytest.fixture
def proxy(ministack_server: S3Server) -> Iterator[Proxy]:
    with Proxy(ministack_server.port) as running:
        yield running


@pytest.fixture
async def store(proxy: Proxy) -> AsyncIterator[S3Store]:
    """A store behind the proxy that waits half a second for an answer."""
    async with open_at(proxy.endpoint, uuid4().hex, read_timeout=0.5, probe=False) as opened:
        yield opened


async def test_every_store_gets_what_is_due(s3_url: str) -> None:
    """Nothing is hidden from others, and the store says so; who took a wake-up does not get it again."""
    async with S3Store.from_url(s3_url) as store, S3Store.from_url(s3_url) as other:
        assert wakeups_of(store) is store
        assert store.hides_wakeups is False
        mine = await store.set_wakeup("run", "flow", LONG_AGO)
        assert await tokens(store) == await tokens(other) == [mine.token]
        assert await tokens(store) == await tokens(other) == []


async def test_who_took_it_gets_it_again_after_the_visibility_timeout(s3_url: str) -> None:
    """And not before, until somebody clears it."""
    async with S3Store.from_url(s3_url) as store, S3Store.from_url(s3_url) as other:
        mine = await store.set_wakeup("run", "flow", LONG_AGO)
        begun = monotonic()
        half = timedelta(seconds=0.5)
        assert await tokens(store, hidden=half) == [mine.token]
        while not (again := await take(store)):
            assert monotonic() < begun + 60, "it was not shown again"
            await asyncio.sleep(0.01)
        assert monotonic() > begun + 0.5
        assert (again[0].token, again[0].run_id, again[0].at) == (mine.token, mine.run_id, mine.at)
        await other.clear_wakeups([mine])
        assert await tokens(other) == []
        async with S3Store.from_url(s3_url) as fresh:
            assert await tokens(fresh) == []


async def test_tasks_of_one_store_share_what_is_due(s3_url: str) -> None:
    """Takes at the same moment return each wake-up to one of them."""
    async with S3Store.from_url(s3_url) as store:
        runs = [f"run {number}" for number in range(20)]
        await asyncio.gather(*(store.set_wakeup(run_id, "flow", LONG_AGO) for run_id in runs))
        parts = await asyncio.gather(*(take(store, limit=30) for _ in range(5)))
        assert sorted(wakeup.run_id for part in parts for wakeup in part) == sorted(runs)


async def test_those_in_hand_keep_the_others_from_nobody(s3_url: str) -> None:
    """A worker that holds as many wake-ups as it asks for at a time still gets the next ones: it would starve."""
    async with S3Store.from_url(s3_url) as store:
        for number in range(6):
            await store.set_wakeup(f"run {number}", f"flow {number % 2}", LONG_AGO + timedelta(seconds=number))
        taken = [await take(store, "flow 0", "flow 1", limit=2) for _ in range(4)]
        assert [[wakeup.run_id for wakeup in part] for part in taken] == [
            ["run 0", "run 1"],
            ["run 2", "run 3"],
            ["run 4", "run 5"],
            [],
        ]


async def test_objects_of_others_are_passed_over(s3_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is no wake-up hides none; one that does not tell its run is told in the log, and hides none either."""
    async with S3Store.from_url(s3_url) as store:
        mine = await store.set_wakeup("run", "flow", LONG_AGO)
        for name in ("", "README", "!", "1.2.3", mine.token.replace(".", "-")):
            await store._bucket.put(f"{store._keys.wakeups('flow')}{name}", b"")
        assert await tokens(store) == [mine.token]
        assert not caplog.records
        cut = await store.set_wakeup("é" * 200, "flow", LONG_AGO)
        escaped = mine.token.replace(".run", ".%zz")
        for token, body in ((cut.token, b'"another run"'), (cut.token[:-1] + "!", b"{"), (escaped, b"")):
            await store._bucket.put(store._keys.wakeup("flow", token), body)
        assert await tokens(store) == []
        assert caplog.text.count("is not a wake-up of a run") == 3
        sound = await store.set_wakeup("other run", "flow", LONG_AGO)
        assert await tokens(store) == [sound.token]


async def test_the_servers_clock_decides(proxy: Proxy, store: S3Store) -> None:
    """What is due is told by the `Date` of the answer, whatever this machine's clock says."""
    now = datetime.now(UTC).replace(microsecond=0)
    ahead = now + timedelta(hours=2)

    def two_hours_ahead(line: Line) -> None:
        answer = line.forward()
        headers = [(name, value) for name, value in answer.headers if name.lower() != "date"]
        line.send(answer._replace(headers=[*headers, ("Date", format_datetime(ahead, usegmt=True))]))

    soon = await store.set_wakeup("run", "flow", now + timedelta(hours=1))
    assert await take(store) == []
    proxy.fault = two_hours_ahead
    (taken,) = await take(store)
    assert (taken.token, taken.now) == (soon.token, ahead)
    assert (await store.set_wakeup("run", "flow", now)).now == ahead


async def test_without_a_date_the_machines_clock_decides(proxy: Proxy, store: S3Store) -> None:
    """Where an endpoint or a proxy before it leaves the header out."""

    def dateless(line: Line) -> None:
        answer = line.forward()
        line.send(answer._replace(headers=[(name, value) for name, value in answer.headers if name.lower() != "date"]))

    proxy.fault = dateless
    before = datetime.now(UTC)
    mine = await store.set_wakeup("run", "flow", before)
    await store.set_wakeup("later", "flow", before + timedelta(hours=1))
    (taken,) = await take(store)
    assert taken.run_id == "run"
    assert before <= mine.now <= taken.now <= datetime.now(UTC)


@pytest.mark.parametrize("fault", BEFORE_OR_AFTER.values(), ids=BEFORE_OR_AFTER)
async def test_setting_and_clearing_survive(proxy: Proxy, store: S3Store, fault: Fault) -> None:
    """Whether the request took effect or not: the wake-up is there once, and then not at all."""
    proxy.once("PUT", fault, times=2)
    mine = await store.set_wakeup("run", "flow", LONG_AGO)
    assert proxy.operations["PUT"] == 3
    assert await tokens(store) == [mine.token]
    proxy.once("DELETE", fault, times=2)
    await store.clear_wakeups([mine])
    assert proxy.operations["DELETE"] == 3
    assert [page.objects async for page in store._bucket.pages(store._keys.wakeups("flow"))] == [[]]


@pytest.mark.parametrize("operation", ["LIST", "GET"])
@pytest.mark.parametrize("fault", {**BEFORE_OR_AFTER, **IN_AN_ANSWER}.values(), ids={**BEFORE_OR_AFTER, **IN_AN_ANSWER})
async def test_taking_survives(proxy: Proxy, store: S3Store, operation: str, fault: Fault) -> None:
    """Half of an answer is never taken for a whole one."""
    mine = [(await store.set_wakeup(run_id, "flow", LONG_AGO)).token for run_id in ("a", "b", "é" * 200)]
    proxy.once(operation, fault, times=2)
    assert sorted(await tokens(store)) == sorted(mine)
    assert proxy.operations[operation] == 3


async def test_a_store_that_stays_away_takes_nothing_along(proxy: Proxy, store: S3Store) -> None:
    """A poll that fails says so, and what it did not return comes with the next one."""
    store._bucket.patience = 0.2
    mine = await store.set_wakeup("run", "flow", LONG_AGO)
    proxy.fault = faults.refused(503, "SlowDown")
    with pytest.raises(StoreError, match=r"s3:ListBucket on s3://.*wakeups/flow/.* is unavailable"):
        await take(store)
    with pytest.raises(StoreError, match=r"s3:PutObject on s3://.*wakeups/flow/.* is unavailable"):
        await store.set_wakeup("run", "flow", LONG_AGO)
    with pytest.raises(StoreError, match=r"s3:DeleteObject on s3://.*wakeups/flow/.* is unavailable"):
        await store.clear_wakeups([mine])
    proxy.fault = None
    assert await tokens(store) == [mine.token]
    await store.clear_wakeups([mine])


async def test_a_run_that_can_not_be_is_refused(s3_url: str) -> None:
    """Before anything is set."""
    async with S3Store.from_url(s3_url) as store:
        with pytest.raises(ValueError, match="run_id 'a\\\\nb' contains a control character"):
            await store.set_wakeup("a\nb", "flow", LONG_AGO)
        assert await take(store) == []


async def test_a_worker_gets_to_what_lies_behind_the_runs_in_hand(s3_url: str) -> None:
    """Runs that it drives, with many wake-ups each, and runs that another holds take no room from those that are due later."""
    may_end = asyncio.Event()

    @flow
    async def wait(runner: Runner) -> None:
        await runner.step("wait", may_end.wait, returns=None)

    @flow
    async def greet(runner: Runner) -> str:
        return await runner.step("greet", lambda: "hello")

    async with S3Store.from_url(s3_url) as store, S3Store.from_url(s3_url) as other, AsyncExitStack() as held:
        for run_id in ("long 1", "long 2"):
            await wait.start(store, run_id)
        for number in range(3):
            await greet.start(store, f"held {number}")
            await held.enter_async_context(other.lock(f"held {number}"))
        for number in range(20):
            await store.set_wakeup(f"long {number % 2 + 1}", wait.name, LONG_AGO)
        quick = [f"quick {number}" for number in range(5)]
        async with Worker(store, [wait, greet], concurrency=3, poll=0.05):
            for run_id in quick:
                await greet.start(other, run_id)
            results = [control.result(other, run_id, timeout=60) for run_id in quick]
            assert await asyncio.gather(*results) == ["hello"] * len(quick)
            assert [(await control.status(store, run_id)).status for run_id in ("long 1", "long 2")] == ["running"] * 2
            may_end.set()
            for run_id in ("long 1", "long 2"):
                await control.result(other, run_id, timeout=60)
