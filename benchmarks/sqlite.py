"""The SQLite store beside the bare database: `python benchmarks/sqlite.py [folder]`.

Bare means the same row committed to the same tables without the store, in rounds that take turns with ours.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

from rows import async_medians, async_seconds, in_child, peak_memory, row, seconds
from runs import add_flows, decision_seconds, finding_seconds, step_seconds, waiting_share

from durable_core import Runner, StepRecord
from durable_sqlite import SqliteStore

LONG = 100_000
RESULT = b'{"account":"acct_19fK2","balance":{"amount":1250,"currency":"EUR"}}'
COLUMNS = (*StepRecord.__struct_fields__, "crc")


def record(run: str, step: int) -> StepRecord:
    return StepRecord(run_id=run, step_id=f"step-{step:06}", result=RESULT)


def bare(record: StepRecord) -> tuple[object, ...]:
    """Return the row of `record`, as a program without us would have it ready."""
    return (
        *(record.run_id, record.step_id, record.revision, record.status, record.kind, record.name, RESULT.decode(), None, None),
        *(None, record.attempt, record.started_at.isoformat(), record.ended_at.isoformat(), record.id, record.fingerprint),
        2**31,
    )


class Bare:
    """A connection to the store's database, as durable as the store's."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("pragma synchronous = full")
        self._insert = f"insert into durable_steps ({', '.join(COLUMNS)}) values ({', '.join('?' * len(COLUMNS))})"

    def commit(self, row: tuple[object, ...]) -> None:
        self._connection.execute("begin immediate")
        self._connection.execute(self._insert, row)
        self._connection.execute("commit")

    def close(self) -> None:
        self._connection.close()


async def one_run(folder: Path) -> None:
    path, columns = folder / "one.db", list[tuple[float, float, float]]()
    async with SqliteStore(path) as store:
        await store.list("run")
        other = Bare(path)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            for step in range(400):
                one, two, mine = bare(record("bare", step)), bare(record("thread", step)), record("run", step)
                floor = seconds(lambda one=one: other.commit(one))  # type: ignore[misc]
                threaded = await async_seconds(loop.run_in_executor(thread, other.commit, two))
                columns.append((floor, threaded, await async_seconds(store.append(mine))))
        other.close()
    floor, threaded, append = (median(column) for column in zip(*columns[20:], strict=True))
    row("a bare commit of the row", floor * 1e6, None, "µs")
    row("the same in a worker thread", threaded * 1e6, None, "µs")
    row("append, one run, over a bare commit of the same row", append / floor, 2.5, "x")
    row("append, one run, over the same in a worker thread", append / threaded, 1.5, "x")


async def at_once(folder: Path) -> None:
    async with SqliteStore(folder / "at_once.db") as store:
        records = [record("run", step) for step in range(20_000)]
        took = await async_seconds(asyncio.gather(*map(store.append, records)))
        row("appends at once", len(records) / took, None, "/s")


async def resume(path: Path) -> float:
    """Open the database and resume its run; return how many seconds that took."""

    async def never() -> dict[str, object]:
        raise AssertionError

    start = perf_counter()
    async with SqliteStore(path) as store, Runner(store, run_id="run") as runner:
        await runner.step("step-000000", never)
        await runner.step(f"step-{LONG - 1:06}", never)
        return perf_counter() - start


async def resumes(folder: Path) -> None:
    path = folder / "long.db"
    async with SqliteStore(path) as store:
        for start in range(0, LONG, 1_000):
            await asyncio.gather(*(store.append(record("run", step)) for step in range(start, start + 1_000)))
    (idle,) = in_child(__file__, "--idle")
    took, memory = (median(column) for column in zip(*(in_child(__file__, "--resume", path) for _ in range(5)), strict=True))
    row(f"resume of {LONG:,} steps ({path.stat().st_size / 1e6:.0f} MB)", took, 1, "s")
    row("  memory over the interpreter with the library imported", (memory - idle) / 1e6, 100, "MB")


async def many_runs(folder: Path) -> None:
    async with SqliteStore(folder / "many.db") as store:
        counts = (100, 1_000, 10_000)
        measures: list[Callable[[], Awaitable[float]]] = [lambda runs=runs: step_seconds(store, runs) for runs in counts]  # type: ignore[misc]
        hundred, *others = await async_medians(*measures, rounds=3)
        row("a step under the lock, 100 runs at once", hundred * 1e6, None, "µs")
        for runs, figure in zip(counts[1:], others, strict=True):
            row(f"a step where {runs:,} runs go on at once, over 100", figure / hundred, 1.5, "x")


async def waiting(folder: Path) -> None:
    async with SqliteStore(folder / "waiting.db") as store:
        row("an approval to the run of the same process going on", await decision_seconds(store) * 1e3, 5, "ms")
        row("1,000 waiting runs, of a core", await waiting_share(store), 1, "%")


async def finding(folder: Path) -> None:
    async with SqliteStore(folder / "finding.db") as store:
        await add_flows(store, LONG)
        row("50 runs that wait, of 100,000", await finding_seconds(store) * 1e3, 100, "ms")

        async def any_run() -> float:
            return await async_seconds(store.flows(limit=50))

        async def by_prefix() -> float:
            return await async_seconds(store.flows("order-00001", limit=50))

        everything, rare = await async_medians(any_run, by_prefix)
        row("50 flows of any state, of 100,000", everything * 1e3, 100, "ms")
        row("10 flows of 100,000, by their prefix", rare * 1e3, 100, "ms")


async def wakeups(folder: Path) -> None:
    flows, hour = [f"flow-{number}" for number in range(10)], timedelta(hours=1)
    async with SqliteStore(folder / "wakeups.db") as store:

        async def take() -> float:
            return await async_seconds(store.take_wakeups(flows, limit=50, visibility_timeout=hour))

        for name, at in (("none due", datetime.now(UTC) + hour), ("as many due", datetime.now(UTC) - hour)):
            for start in range(0, LONG, 1_000):
                names = [(f"run-{number}", flows[number % 10]) for number in range(start, start + 1_000)]
                await asyncio.gather(*(store.set_wakeup(run_id, flow, at) for run_id, flow in names))
            (took,) = await async_medians(take)
            row(f"take_wakeups among {LONG:,}, {name}", took * 1e3, 20, "ms")


def main() -> None:
    match sys.argv[1:]:
        case ["--resume", path]:
            print(asyncio.run(resume(Path(path))), peak_memory())
        case ["--idle"]:
            print(peak_memory())
        case [*place]:
            with tempfile.TemporaryDirectory(dir=place[0] if place else ".") as name:
                for measure in (one_run, at_once, resumes, many_runs, waiting, finding, wakeups):
                    asyncio.run(measure(Path(name)))


if __name__ == "__main__":
    main()
