"""Entries are listed in order of append, the same for every reader."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from durable_core import StepRecord
from durable_s3 import S3Store, _entry
from tests.s3.support import entry, open_at
from tests.servers.s3 import S3Server


class Clock:
    """Stands for the machine's clock, as some writer has it."""

    def __init__(self) -> None:
        self.ahead = 0

    def set(self, store: S3Store) -> None:
        """Let the store go by this clock."""
        store._order.now = lambda: time.time_ns() // 1000 + self.ahead * 1_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def ids(store: S3Store) -> list[str]:
    return [f"{record.step_id}{record.revision or ''}" for record in await store.list("run")]


@pytest.mark.asyncio
async def test_writers_that_take_turns_are_listed_in_turn(moto_server: S3Server) -> None:
    """Also where neither has read what the other wrote."""
    prefix = uuid4().hex
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_at(moto_server.endpoint, prefix, probe=False)) for _ in range(3)]
        for number in range(9):
            await stores[number % 3].append(entry("zyxwvutsr"[number]))
        assert await ids(stores[0]) == [*"zyxwvutsr"]


@pytest.mark.asyncio
async def test_a_clock_that_goes_back_changes_nothing(moto_server: S3Server, clock: Clock) -> None:
    """What a writer has read or written stays before what it appends next, by an hour as by a day."""
    prefix = uuid4().hex
    async with open_at(moto_server.endpoint, prefix, probe=False) as store:
        clock.set(store)
        clock.ahead = 86_400
        await store.append(entry("z"))
        clock.ahead = -3600
        await store.append(entry("y"))
    async with open_at(moto_server.endpoint, prefix, probe=False) as resumed:
        clock.set(resumed)
        await resumed.list("run")
        await resumed.append(entry("x"))
    async with open_at(moto_server.endpoint, prefix, probe=False) as outside:
        clock.set(outside)
        found = await outside.get("run", "x")
        assert found is not None
        await outside.append(entry("x", 1))
        assert (await outside.append(entry("y"))).step_id == "y"
        await outside.append(entry("w"))
        assert await ids(outside) == ["z", "y", "x", "x1", "w"]


@pytest.mark.asyncio
async def test_revisions_keep_their_order_whatever_the_clocks(moto_server: S3Server, clock: Clock) -> None:
    """A writer that knew nothing of the run, with a clock that is behind, still can't come before what it follows."""
    prefix = uuid4().hex
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_at(moto_server.endpoint, prefix, probe=False)) for _ in range(3)]
        for store in stores:
            clock.set(store)
        await stores[0].append(entry("a"))
        clock.ahead = -60
        await stores[1].append(entry("a", 1))
        clock.ahead = 0
        await stores[2].append(entry("b"))
        for store in stores:
            assert await ids(store) == ["a", "a1", "b"]


def test_equal_places_are_listed_alike_by_all() -> None:
    """Writers that did not know of each other may have used one place; the tie is broken by what stands in the entries."""
    entries = [
        _entry.Entry(f"run/{step}/{revision}", "etag", _entry.encode(entry(step, revision), order))
        for step, revision, order in (("b", 0, 5), ("a", 0, 5), ("a", 1, 5), ("c", 0, 4), ("b", 1, 3))
    ]
    heads = [_entry.head(at.body, at.key) for at in entries]
    expected = ["run/c/0", "run/a/0", "run/b/0", "run/a/1", "run/b/1"]
    assert [at.key for at in _entry.in_order(entries, heads)] == expected
    assert [at.key for at in _entry.in_order(entries[::-1], heads[::-1])] == expected


def test_the_clock_forgets_runs_that_no_longer_count() -> None:
    """A store that lives for years doesn't remember every run, and never gives a place twice."""
    clock = _entry.OrderClock()
    places = [clock.next(f"run-{number}") for number in range(10_001)]
    assert len(clock._highest) < 10_001
    clock.saw("ahead", 2**60)
    for number in range(20_000):
        clock.next(f"other-{number}")
    assert clock.next("ahead") == 2**60 + 1
    assert clock.next("run-0") > places[0]


def test_an_entry_is_the_record_itself() -> None:
    """The object is the record's JSON line and its place: other tools can read it."""
    record = entry(result=b'{"a": 1}')
    body = _entry.encode(record, 7)
    assert body == b'{"order":7,' + record.to_json()[1:]
    assert StepRecord.from_json(body) == record
