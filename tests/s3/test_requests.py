"""What each call costs, in requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from durable_core.testing._contract.flows import BEGAN, flow_entry
from durable_s3 import S3Store
from tests.s3.support import Requests, TestsClock, client_of, entry
from tests.servers.s3 import BUCKET, S3Server

pytestmark = pytest.mark.asyncio


class Counted:
    """A bucket below a prefix of its own, and stores on it whose requests are counted."""

    def __init__(self, server: S3Server) -> None:
        self.client = client_of(server.endpoint, connections=64, read_timeout=120)  # on a busy machine no request is sent twice
        self.requests = Requests(self.client)
        self.prefix = uuid4().hex

    def shorten_pages(self, size: int) -> None:
        """Let no LIST return more keys than `size`, where S3 returns a thousand."""

        def shorten(params: dict[str, Any], **_: Any) -> None:
            params["MaxKeys"] = min(size, params.get("MaxKeys", size))

        self.client.meta.events.register("provide-client-params.s3.ListObjectsV2", shorten)

    def store(self, **options: Any) -> S3Store:
        return S3Store(self.client, BUCKET, self.prefix, **{"probe": False, **options})


@pytest.fixture
async def counted(ministack_server: S3Server) -> AsyncIterator[Counted]:
    found = Counted(ministack_server)
    yield found
    found.client.close()


async def test_an_append_is_one_put(counted: Counted) -> None:
    """Also in a store that knows nothing of the run yet; one that loses its slot reads the holder as well."""
    async with counted.store() as store, counted.store() as fresh:
        await store.append(entry())
        assert counted.requests.taken() == {"put": 1}
        await fresh.append(entry(revision=1))
        assert counted.requests.taken() == {"put": 1}
        await store.append(entry())
        assert counted.requests.taken() == {"put": 1, "get": 1}


async def test_a_flow_is_marked_in_one_put_and_its_end_takes_two_requests(counted: Counted) -> None:
    """Entries of `$flow` alone; a page of 50 among 100 open runs reads 64 of them at most."""
    async with counted.store() as store:
        await store.append(flow_entry())
        assert counted.requests.taken() == {"put": 2}
        await store.append(flow_entry(state="failed", revision=1))
        assert counted.requests.taken() == {"put": 1, "list": 1, "delete": 1}
        moments = [BEGAN + timedelta(seconds=number) for number in range(100)]
        await asyncio.gather(*(store.append(flow_entry(f"run {at:%M%S}", started_at=at)) for at in moments))
        counted.requests.clear()
        assert len(await store.flows()) == 50
        assert counted.requests.taken() == {"list": 1 + 64, "get": 64}


async def test_a_get_is_two_requests_at_most(counted: Counted) -> None:
    """However many revisions the step has."""
    async with counted.store() as store:
        assert await store.get("run", "step") is None
        assert counted.requests.taken() == {"list": 1}
        for revision in range(12):
            await store.append(entry(revision=revision))
        counted.requests.clear()
        found = await store.get("run", "step")
        assert found is not None
        assert found.revision == 11
        assert counted.requests.taken() == {"list": 1, "get": 1}


@pytest.mark.parametrize(("entries", "lists"), [(0, 1), (1, 1), (99, 1)])
async def test_reading_a_run_is_one_get_an_entry(counted: Counted, entries: int, lists: int) -> None:
    async with counted.store() as store:
        await asyncio.gather(*(store.append(entry(f"step-{number}")) for number in range(entries)))
        counted.requests.clear()
        assert len(await store.list("run")) == entries
        assert counted.requests.taken() == {"list": lists} | ({"get": entries} if entries else {})


async def test_a_long_run_is_read_from_its_snapshot(counted: Counted) -> None:
    """1,001 entries: 2 LISTs and 1,001 GETs, and one GET that finds no snapshot; then 2 LISTs and 1 GET; then the tail too."""
    async with counted.store() as store:
        await asyncio.gather(*(store.append(entry(f"step-{number}")) for number in range(1001)))
        counted.requests.clear()
        first = await store.list("run")
        assert counted.requests.taken() == {"list": 3, "get": 1002, "put": 1}  # one LIST and the PUT are the snapshot's
        assert len({record.step_id for record in first}) == 1001
        assert await store.list("run") == first
        assert counted.requests.taken() == {"list": 2, "get": 1}
        tail = [await store.append(entry(f"tail-{number}")) for number in range(3)]
        counted.requests.clear()
        assert await store.list("run") == [*first, *tail]
        assert counted.requests.taken() == {"list": 2, "get": 4}
        await store.clear("run")
        assert counted.requests.taken() == {"list": 3, "get": 4, "delete": 4}


async def test_entries_are_read_32_at_a_time(counted: Counted) -> None:
    """Never more, and that many where there is something to read."""
    lock, peak, now = threading.Lock(), 0, 0
    together = threading.Barrier(32)

    def begin(**_: Any) -> None:
        nonlocal peak, now
        with lock:
            now += 1
            peak = max(peak, now)
        together.wait(10)

    def end(**_: Any) -> None:
        nonlocal now
        with lock:
            now -= 1

    async with counted.store() as store:
        await asyncio.gather(*(store.append(entry(f"step-{number}")) for number in range(64)))
        counted.client.meta.events.register("before-send.s3.GetObject", begin)
        counted.client.meta.events.register("after-call.s3.GetObject", end)
        assert len(await store.list("run")) == 64
    assert peak == 32


async def test_runs_are_listed_by_folder(counted: Counted) -> None:
    """One LIST for up to 1,000 runs, whatever they hold; and two requests for each run whose id is too long for a key."""
    async with counted.store() as store:
        for run_id in ("one", "two", "é" * 200):
            for revision in range(3):
                await store.append(entry(run_id=run_id, revision=revision))
        counted.requests.clear()
        assert {run_id async for run_id in store.runs()} == {"one", "two", "é" * 200}
        assert counted.requests.taken() == {"list": 2, "get": 1}


async def test_a_lock_costs_a_handful_of_requests(counted: Counted) -> None:
    """Taken for the first time with three, and after another holder with five; given back with two."""
    async with counted.store() as store:
        async with store.lock("run"):
            assert counted.requests.taken() == {"list": 2, "put": 1}
        assert counted.requests.taken() == {"put": 1, "delete": 1}
        async with store.lock("run"):
            assert counted.requests.taken() == {"list": 2, "get": 1, "put": 1, "delete": 1}


async def test_the_probe_is_made_once_a_process(counted: Counted) -> None:
    """Two small PUTs for a new bucket, one where its object is there, and none once the endpoint is known."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(counted.store(probe=True)) for _ in range(3)]
        known: set[tuple[str, str]] = set()
        for store in stores:
            store._honoured = known
        await stores[0].append(entry())
        assert counted.requests.taken() == {"put": 3}
        await asyncio.gather(*(stores[1].append(entry(f"step-{number}")) for number in range(3)))
        assert counted.requests.taken() == {"put": 3}
        known.clear()
        await stores[2].list("run")
        assert counted.requests.taken() == {"put": 1, "list": 1, "get": 4}


@pytest.mark.parametrize("steps", [1, 3])
async def test_a_run_that_waits_takes_four_requests_a_minute(counted: Counted, steps: int) -> None:
    """Its looks, at one step or at three, and the renewals of its lock: over ten minutes, one LIST a look and one PUT in 80 s."""
    async with counted.store() as store:
        clock = store._leases.clock = TestsClock()
        known = [("run", step, 0) for step in ("approve", "$flow", "$cancel")[:steps]]
        for run_id, step_id, _ in known:
            await store.append(entry(step_id, run_id=run_id))
        async with store.lock("run") as lease:
            counted.requests.clear()
            for _ in range(30):
                await clock.pass_by(store.poll_seconds)
                assert await store.newer(known) == []
                lease.check()
            found = counted.requests.taken()
        assert found == {"list": 30, "put": 7}
        assert sum(found.values()) <= 4 * 10


async def test_a_look_reads_only_what_is_newer(counted: Counted) -> None:
    """And one at a step that was decided is one LIST and one GET."""
    async with counted.store() as store:
        for step in ("approve", "$flow", "other"):
            await store.append(entry(step))
        await store.append(entry("approve", 1))
        counted.requests.clear()
        (found,) = await store.newer([("run", "approve", 0), ("run", "$flow", 0), ("run", "$cancel", -1)])
        assert (found.step_id, found.revision) == ("approve", 1)
        assert counted.requests.taken() == {"list": 1, "get": 1}


async def test_a_look_at_a_long_run_is_one_list_a_step(counted: Counted) -> None:
    """Once its LISTs are more than its steps; which is found out once."""
    counted.shorten_pages(20)
    async with counted.store() as store:
        await asyncio.gather(*(store.append(entry(f"step-{number}")) for number in range(41)))
        known = [("run", "step-7", -1), ("run", "$cancel", -1)]
        counted.requests.clear()
        for lists in (4, 2):
            (found,) = await store.newer(known)
            assert found.step_id == "step-7"
            assert counted.requests.taken() == {"list": lists, "get": 1}


async def test_who_holds_a_run_takes_two_requests(counted: Counted) -> None:
    """One where it was never locked."""
    async with counted.store() as store, store.lock("one"):
        counted.requests.clear()
        assert [*await store.holders(["one", "two"])] == ["one"]
        assert counted.requests.taken() == {"list": 2, "get": 1}


async def test_a_poll_is_one_list_a_flow(counted: Counted) -> None:
    """However many wake-ups are set for later, and however many were taken before; setting and clearing are one request each."""
    counted.shorten_pages(7)
    asked: list[int] = []
    counted.client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: asked.append(params["MaxKeys"])
    )
    now = datetime.now(UTC)
    long_ago, later, flows = now - timedelta(minutes=1), now + timedelta(hours=1), ["one", "two", "three"]
    hour = timedelta(hours=1)
    async with counted.store() as store:
        due = await store.set_wakeup("run", "one", long_ago)
        assert counted.requests.taken() == {"put": 1}
        await asyncio.gather(*(store.set_wakeup(f"run {number}", flow, later) for number in range(30) for flow in flows))
        counted.requests.clear()
        for expected in ([due.token], [], []):
            taken = await store.take_wakeups(flows, limit=3, visibility_timeout=hour)
            assert [wakeup.token for wakeup in taken] == expected
            assert counted.requests.taken() == {"list": len(flows)}
        assert sorted(asked) == [*[3] * 7, 4, 4]
        more = [await store.set_wakeup(f"run {number}", "one", long_ago) for number in range(2)]
        counted.requests.clear()
        await store.clear_wakeups([due, *more])
        assert counted.requests.taken() == {"delete": 1}
        await store.clear_wakeups([])
        assert await store.take_wakeups([], limit=3, visibility_timeout=hour) == []
        assert await store.take_wakeups(flows, limit=0, visibility_timeout=hour) == []
        assert counted.requests.taken() == {}


async def test_a_wakeup_of_a_long_id_takes_one_get_more(counted: Counted) -> None:
    """The key has room for most ids; a longer one stands in the object."""
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    async with counted.store() as store:
        for run_id in ("short", "é" * 200):
            await store.set_wakeup(run_id, "flow", long_ago)
        assert counted.requests.taken() == {"put": 2}
        taken = await store.take_wakeups(["flow"], limit=9, visibility_timeout=timedelta(hours=1))
        assert {wakeup.run_id for wakeup in taken} == {"short", "é" * 200}
        assert counted.requests.taken() == {"list": 1, "get": 1}
