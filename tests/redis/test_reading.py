"""Reading logs: in pages that hold up no one, of one log and never of two, from keys in one slot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from durable_core import CorruptLog, StepRecord, StoreError, open_store
from durable_core.stores.lines import heads_of
from durable_core.testing import HOSTILE_IDS
from durable_redis import RedisStore
from durable_redis._keys import Keys
from tests.servers.redis import KEEPING, RedisServer, redis_cluster, redis_server

pytestmark = pytest.mark.asyncio
LONG = b'"' + b"x" * 1_000 + b'"'


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as started:
        yield started


def entries(count: int, run_id: str = "run", name: str = "step", result: bytes = LONG) -> list[StepRecord]:
    return [StepRecord(run_id=run_id, step_id=f"{name} {number}", result=result) for number in range(count)]


async def test_a_long_run_is_read_in_short_calls(server: RedisServer) -> None:
    """No call for a run of 20,000 steps reads more than a thousand records, or much more than 128 kB."""
    async with open_store(server.url) as store:
        records = entries(20_000, result=b'"short"')
        await asyncio.gather(*map(store.append, records))
        server.command("CONFIG", "RESETSTAT")
        listed = await store.list("run")
        assert [record.id for record in listed] == [record.id for record in records]
        calls = server.command("INFO", "commandstats")
        most = 20_000 / calls["cmdstat_evalsha"]["calls"]
        assert 100 < most <= 1_000
        assert listed[-1] == records[-1]
        assert list(listed[5:7]) == records[5:7]
        with pytest.raises(IndexError):
            listed[20_000]


async def test_records_larger_than_a_page(server: RedisServer) -> None:
    """Records of any size are read, one a call where they are large."""
    async with open_store(server.url) as store:
        records = entries(5, result=b'"' + b"x" * 400_000 + b'"')
        await asyncio.gather(*map(store.append, records))
        assert [*await store.list("run")] == records


async def test_a_run_that_is_written_anew_between_two_pages(server: RedisServer) -> None:
    """`list` returns one of the two logs, and `scan`, which has yielded some of the first, raises."""
    async with RedisStore.from_url(server.url) as store:
        old, new = entries(300, name="old"), entries(300, name="new")
        await asyncio.gather(*map(store.append, old))
        scanned = store.scan("run")
        assert await anext(scanned) == old[0]
        pages = store._pages("run")
        await anext(pages)
        await store.clear("run")
        await asyncio.gather(*map(store.append, new))
        with pytest.raises(StoreError, match="was cleared while it was read"):
            async for record in scanned:
                assert record.step_id.startswith("old")
        assert [*await store.list("run")] == new

        async def rewrite(records: list[StepRecord]) -> None:
            for _ in range(5):
                await store.clear("run")
                await asyncio.gather(*map(store.append, records))

        # The same records again: neither their ids nor their number tells the logs apart.
        task = asyncio.create_task(rewrite(old))
        while not task.done():
            listed = [record.step_id for record in await store.list("run")]
            assert len(listed) == len({*listed})
            assert len({step_id.split()[0] for step_id in listed}) <= 1
        await pages.aclose()


async def test_an_entry_that_was_removed_by_hand(server: RedisServer) -> None:
    """A log with a hole is an error that says where; nothing is skipped."""
    async with open_store(server.url) as store:
        await asyncio.gather(*map(store.append, entries(5)))
        server.command("HDEL", "durable:{run}:log", "3")
        with pytest.raises(CorruptLog, match="HOLE 3"):
            await store.list("run")


async def test_runs_among_other_keys(server: RedisServer) -> None:
    """`runs` names the runs of its own prefix, each once, among keys of other kinds, and calls no KEYS."""
    async with open_store(server.url) as store, open_store(f"{server.url}?prefix=durable2") as other:
        for number in range(300):
            server.command("SET", f"durable:other:{number}", "x")
        server.command("SET", "durable:{text}:log", "x")
        ids = [f"{number:03}*[?]" for number in range(300)]
        await asyncio.gather(*(store.append(entries(1, run_id)[0]) for run_id in ids))
        await other.append(entries(1, "theirs")[0])
        async with store.lock("only a lock"):
            assert sorted([run async for run in store.runs()]) == ids
        assert [run async for run in store.runs("00")] != []
        assert [run async for run in store.runs("007*[")] == ["007*[?]"]
        assert [run async for run in store.runs("007?")] == []
        assert "cmdstat_keys" not in server.command("INFO", "commandstats")


async def test_keys_of_a_run_share_a_slot() -> None:
    """Whatever braces a run's id has, its two keys are in one slot, and the id can be told from the key."""
    keys = Keys("durable")
    with redis_cluster(*KEEPING) as (node, *_):
        for run_id in (*HOSTILE_IDS, "}", "}{", "{}", "a}b{c", "%7D", "%257D"):
            log, lock = keys.log(run_id), keys.lock(run_id)
            assert node.command("CLUSTER", "KEYSLOT", log) == node.command("CLUSTER", "KEYSLOT", lock)
            assert log.count("{") == log.count("}") == 1
            assert keys.run_id(log) == run_id


DEEP = b'{"v":1,"run_id":"run","step_id":"step","revision":0,"status":"success","kind":"step","name":"step","result":%s}'
DAMAGED = {
    "no JSON": b"{",
    "no text": b'{"v":1,"run_id":"\xff"}',
    "another type": b'{"v":1,"run_id":7}',
    "deep": DEEP % (b"[" * 1_000_000 + b"]" * 1_000_000),
    "deep note": DEEP.replace(b"result", b"note") % (b"[" * 1_000_000 + b"]" * 1_000_000),
    "beyond the calendar": DEEP.replace(b"result", b"until") % b'"9999-12-31T23:59:59-05:00"',
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
async def test_a_record_that_was_damaged(server: RedisServer, line: bytes) -> None:
    """Whatever stands in a record's field, every reader answers with an error that names the key, and none with another."""
    async with RedisStore.from_url(server.url) as store:
        await store.append(StepRecord(run_id="run", step_id="step"))
        server.command("HSET", "durable:{run}:log", 1, line)

        async def scanned() -> None:
            async for _ in store.scan("run"):
                pass

        async def listed() -> None:
            records = await store.list("run")
            list(heads_of(records))
            list(records)

        async def indexed() -> None:
            (await store.list("run"))[0]

        for read in (
            listed,
            indexed,
            scanned,
            lambda: store.get("run", "step"),
            lambda: store.append(StepRecord(run_id="run", step_id="step")),
        ):
            with pytest.raises(CorruptLog, match=r"durable:\{run\}:log"):
                await read()


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", "many"), ("l:step", "newest"), ("l:step", 7), ("s0:step", 99), ("s0:step", "first")],
)
async def test_a_field_of_another_kind(server: RedisServer, field: str, value: object) -> None:
    """A field that can't be meant is an error that names the key: nothing is taken for missing, and no append for a winner."""
    async with RedisStore.from_url(server.url) as store:
        await store.append(StepRecord(run_id="run", step_id="step"))
        server.command("HSET", "durable:{run}:log", field, value)
        read = (lambda: store.list("run")) if field == "n" else (lambda: store.get("run", "step"))
        with pytest.raises(StoreError, match=r"durable:\{run\}:log"):
            await read()
        if not field.startswith("l:"):
            with pytest.raises(StoreError, match=r"durable:\{run\}:log"):
                await store.append(StepRecord(run_id="run", step_id="other" if field == "n" else "step"))


async def test_keys_that_look_like_runs(server: RedisServer) -> None:
    """A hash whose key holds no id of a run hides no run from `runs`."""
    for key in (b"durable:{\xff}:log", b"durable:{%FF}:log", b"durable:{}:log", b"durable:{a\nb}:log"):
        server.command("HSET", key, "n", 1)
    async with RedisStore.from_url(server.url) as store:
        await store.append(StepRecord(run_id="run", step_id="step"))
        assert [run_id async for run_id in store.runs()] == ["run"]
