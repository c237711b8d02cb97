"""Whole runs on servers and processes that die: nothing that was recorded is lost, and nothing recorded runs again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import pytest
from redis.asyncio.sentinel import Sentinel

from durable_core import LockLost, Runner, StepRecord, StoreError, open_store
from durable_core.testing import CrashingStore
from durable_core.testing._processes import Child, Pipe
from durable_redis import RedisStore
from tests.servers.proxy import proxied
from tests.servers.redis import KEEPING, RedisServer, redis_cluster, redis_pair, redis_sentinel, redis_server

pytestmark = pytest.mark.asyncio
STEPS = ("one", "two", "three", "four")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server(*KEEPING) as started:
        yield started


def effect(journal: Path, step: str) -> str:
    with journal.open("a") as file:
        file.write(f"{step}\n")
    return f"did {step}"


async def flow(store: Any, journal: Path, **options: Any) -> list[str]:
    async with Runner(store, "run", **options) as runner:
        return [await runner.step(step, effect, journal, step) for step in STEPS]


async def flow_that_is_killed(
    pipe: Pipe, open_: Callable[[], Any], journal: Path, at: int, when: Literal["before", "after"]
) -> None:
    async with open_() as store:
        await flow(CrashingStore(store, at, when=when, how="kill"), journal)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
async def test_a_process_killed_at_an_append(redis_url: str, tmp_path: Path, at: int, when: Literal["before", "after"]) -> None:
    """SIGKILL just before a step is recorded makes that step run again, and just after makes none."""
    journal = tmp_path / "journal"
    open_ = partial(open_store, f"{redis_url}&lease=2")
    async with Child(flow_that_is_killed, open_, journal, at, when) as child:
        with pytest.raises(AssertionError, match="exit code -9"):
            await child.receive()
    async with open_() as store:
        assert await flow(store, journal, lock_wait=10) == [f"did {step}" for step in STEPS]
    again = [STEPS[at - 1]] if when == "before" else []
    assert sorted(journal.read_text().split()) == sorted([*STEPS, *again])


async def test_a_server_killed_under_a_run(server: RedisServer, tmp_path: Path) -> None:
    """A run goes on when its server is back: what was recorded is there, and no step ran twice."""
    journal = tmp_path / "journal"

    async def dies(step: str) -> str:
        server.kill()
        asyncio.get_running_loop().call_later(0.5, server.start)
        return effect(journal, step)

    async with open_store(f"{server.url}?waitaof=1,0,5000") as store, Runner(store, "run") as runner:
        for step in STEPS:
            await runner.step(step, dies if step == "two" else partial(effect, journal), step, returns=str)
        assert [record.step_id for record in await store.list("run")] == [*STEPS]
    assert journal.read_text().split() == [*STEPS]


async def test_a_full_server_that_gets_room(server: RedisServer, tmp_path: Path) -> None:
    """A run on a server that has reached maxmemory waits for room, and goes on without running anything again."""
    journal = tmp_path / "journal"

    def fills(step: str) -> str:
        server.command("CONFIG", "SET", "maxmemory", 1)
        return effect(journal, step)

    async def room(store: Any) -> None:
        async with asyncio.timeout(10):
            for number in count():
                await asyncio.sleep(0.05)
                try:
                    await store.append(StepRecord(run_id="probe", step_id=f"{number}"))
                except StoreError as error:
                    assert "server is full" in str(error)  # noqa: PT017 - until then it may have room
                    break
        server.command("CONFIG", "SET", "maxmemory", 0)

    async with open_store(server.url) as store, Runner(store, "run") as runner, asyncio.TaskGroup() as group:
        for step in STEPS:
            if step == "two":
                group.create_task(room(store))
            await runner.step(step, fills if step == "two" else partial(effect, journal), step, returns=str)
    assert journal.read_text().split() == [*STEPS]


async def test_failover_under_a_run(tmp_path: Path) -> None:
    """With `wait=1` a run goes on at the promoted replica: its lock is there, and every step that had returned."""
    journal = tmp_path / "journal"
    with redis_pair(*KEEPING) as (primary, replica), proxied(primary.port) as proxy:

        def fails_over(step: str) -> str:
            primary.kill()
            replica.command("REPLICAOF", "NO", "ONE")
            replica.command("CONFIG", "SET", "min-replicas-to-write", 0)
            proxy.target = replica.port
            return effect(journal, step)

        url = f"redis://127.0.0.1:{proxy.port}/0?lease=5"
        # The promoted server has no replica left to wait for, so the test's runner stops asking for one.
        async with open_store(f"{url}&wait=1,1000") as store, open_store(url) as alone:
            async with Runner(store, "run") as runner:
                for step in STEPS[:2]:
                    await runner.step(step, effect, journal, step)
                fails_over("three")
                assert [record.step_id for record in await alone.list("run")] == ["one", "two"]
            assert await flow(alone, journal, lock_wait=10) == [f"did {step}" for step in STEPS]
    assert journal.read_text().split() == ["one", "two", "three", "three", "four"]


async def test_the_old_holder_after_a_failover(tmp_path: Path) -> None:
    """A holder left behind on the old primary starts no further step once another may hold the run at the new one."""
    with redis_pair(*KEEPING) as (old, new):
        started: list[str] = []

        async def step(name: str) -> str:
            started.append(name)
            return name

        async with (
            open_store(f"{old.url}?lease=1&wait=1,100") as behind,
            open_store(f"{new.url}?lease=1") as ahead,
            Runner(behind, "run", store_timeout=0.5) as holder,
        ):
            await holder.step("one", step, "one")
            new.command("REPLICAOF", "NO", "ONE")
            async with Runner(ahead, "run", lock_wait=10) as successor:
                assert [record.step_id for record in await successor.history()] == ["one"]
                with pytest.raises(LockLost):
                    await holder.step("two", step, "behind")
                await successor.step("two", step, "ahead")
    assert started == ["one", "ahead"]


async def test_sentinel_fails_over(tmp_path: Path) -> None:
    """A store on Sentinel's client finds the new primary by itself; what had returned is there."""
    journal = tmp_path / "journal"
    with redis_pair(*KEEPING) as (primary, _), redis_sentinel(primary) as sentinel:
        client = Sentinel([("127.0.0.1", sentinel.port)], socket_timeout=1).master_for("runs", socket_timeout=1)
        async with client, RedisStore(client, lease=2) as store, Runner(store, "run", store_timeout=60) as runner:
            await runner.step("one", effect, journal, "one")

            def fails(step: str) -> str:
                primary.kill()
                return effect(journal, step)

            await runner.step("two", fails, "two", returns=str)
            assert [record.step_id for record in await store.list("run")] == ["one", "two"]
    assert journal.read_text().split() == ["one", "two"]


# redis-py drops connections unclosed when it reads the map of a cluster that has lost a node.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_cluster_node_that_is_away() -> None:
    """Runs on the nodes that are up are recorded without delay, while those on the one that is away raise."""
    # With `everysec` a busy disk lets a server answer up to two seconds before it writes: this kill would then lose entries.
    with redis_cluster(*KEEPING, "--appendfsync", "always", "--cluster-require-full-coverage", "no") as nodes:
        async with open_store(f"{nodes[0].url}?cluster=true&socket_timeout=0.5") as store:
            runs = [f"run {number}" for number in range(60)]
            began = monotonic()
            await asyncio.gather(*(store.append(StepRecord(run_id=run, step_id="one")) for run in runs))
            usual = monotonic() - began  # on a machine as busy as this one is
            nodes[2].kill()

            async def append(run: str) -> float | None:
                began = monotonic()
                try:
                    await store.append(StepRecord(run_id=run, step_id="two"))
                except StoreError:
                    return None
                return monotonic() - began

            taken = [seconds for seconds in await asyncio.gather(*map(append, runs)) if seconds is not None]
            nodes[2].start()
            assert 15 <= len(taken) < 60
            assert sorted(taken)[len(taken) // 2] < 0.4 + 2 * usual
            async with asyncio.timeout(60):
                while any(seconds is None for seconds in await asyncio.gather(*map(append, runs))):
                    await asyncio.sleep(0.1)
            for run in runs:
                assert [record.step_id for record in await store.list(run)] == ["one", "two"]
    gc.collect()  # so that no other test is told of what redis-py dropped


@pytest.mark.parametrize("options", ["", "&waitaof=1,0,5000"])
async def test_a_slot_that_moves(options: str) -> None:
    """Runs whose slots move to another node in the meantime are found there, and go on."""
    with redis_cluster(*KEEPING) as nodes:
        async with open_store(f"{nodes[0].url}?cluster=true{options}") as store:
            runs = [f"run {number}" for number in range(30)]
            await asyncio.gather(*(store.append(StepRecord(run_id=run, step_id="one")) for run in runs))
            _move_slots(nodes, {nodes[0].command("CLUSTER", "KEYSLOT", f"{{{run}}}") for run in runs})
            for step in ("two", "three"):
                records = [StepRecord(run_id=run, step_id=step) for run in runs]
                assert await asyncio.gather(*map(store.append, records)) == records
            for run in runs:
                assert [record.step_id for record in await store.list(run)] == ["one", "two", "three"]


async def test_a_slot_that_moves_while_copies_are_short() -> None:
    """Following a run to another node doesn't make up for copies that are missing."""
    with redis_cluster(*KEEPING) as nodes:
        async with open_store(f"{nodes[0].url}?cluster=true&wait=1,20") as store:
            runs = [f"run {number}" for number in range(12)]
            for step in ("before", "after"):
                appends = (store.append(StepRecord(run_id=run, step_id=step)) for run in runs)
                outcomes = await asyncio.gather(*appends, return_exceptions=True)
                assert all("WAIT found 0 of 1" in str(outcome) for outcome in outcomes)
                if step == "before":
                    _move_slots(nodes, {nodes[0].command("CLUSTER", "KEYSLOT", f"{{{run}}}") for run in runs})


async def test_a_slot_that_is_on_its_way() -> None:
    """While a slot is moving, copies can't be confirmed: appends raise, and return once the slot has arrived."""
    with redis_cluster(*KEEPING) as nodes:
        url = f"{nodes[0].url}?cluster=true"
        async with open_store(f"{url}&waitaof=1,0,5000") as store, open_store(url) as plain:
            await store.append(StepRecord(run_id="run", step_id="one"))
            slot = nodes[0].command("CLUSTER", "KEYSLOT", "{run}")
            arrived = _send_slot(nodes, slot)
            record = StepRecord(run_id="run", step_id="two")
            for _ in range(2):
                with pytest.raises(StoreError, match="is moving to another node"):
                    await store.append(record)
            assert (await plain.append(StepRecord(run_id="run", step_id="two"))).id == record.id
            arrived()
            assert await store.append(record) == record
            assert [each.step_id for each in await store.list("run")] == ["one", "two"]


async def test_calls_go_to_the_node_that_has_the_run() -> None:
    """No call on a cluster that is in order is sent to a node that must pass it on."""
    with redis_cluster(*KEEPING) as nodes:
        async with open_store(f"{nodes[0].url}?cluster=true") as store:
            for run in (f"run {number}" for number in range(20)):
                await asyncio.gather(*(store.append(StepRecord(run_id=run, step_id=f"{step}")) for step in range(3)))
                assert len(await store.list(run)) == 3
                assert await store.get(run, "0") is not None
        for node in nodes:
            assert "errorstat_MOVED" not in node.command("INFO", "errorstats")


def _move_slots(nodes: list[RedisServer], slots: set[int]) -> None:
    for slot in slots:
        _send_slot(nodes, slot)()


def _send_slot(nodes: list[RedisServer], slot: int) -> Callable[[], None]:
    """Move the keys of a slot to the next node; return what then makes that node the slot's."""
    ids = [node.command("CLUSTER", "MYID").decode() for node in nodes]
    at = slot * len(nodes) // 16384
    to = (at + 1) % len(nodes)
    source, target = nodes[at], nodes[to]
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[at])
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
    for key in source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        source.command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)

    def arrived() -> None:
        for node in (target, source):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[to])

    return arrived
