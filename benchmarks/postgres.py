"""PostgreSQL: appends beside bare inserts of the same rows on the same server, and the resume of a long run."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import asyncpg

from durable_core import Runner, StepRecord
from durable_postgres import PostgresStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers.postgres import start_postgres

ROUNDS = 5
ALONE = 400
RUNS, STEPS = 1_000, 10
TASKS, BARE = 200, 4_000
LONG = 100_000
VALUE = "the account 123456 of someone@example.com, as was agreed"
RESULT = f'"{VALUE}"'.encode()

COLUMNS = (
    "run_id, step_id, revision, status, kind, name, result, error, note, until, attempt, started_at, ended_at, id, fingerprint"
)
Insert = tuple[object, ...]


def record(run_id: str, step_id: str) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=step_id, result=RESULT, fingerprint="0123456789abcdef")


def bare(record: StepRecord) -> Insert:
    """The row of `record`, as a program without us would have it ready."""
    return (
        *(record.run_id, record.step_id, record.revision, record.status, record.kind, record.name, RESULT.decode(), None, None),
        *(record.until, record.attempt, record.started_at, record.ended_at, record.id, record.fingerprint),
    )


def report(what: str, measured: float, unit: str, ratio: float, target: str, *, good: bool) -> None:
    print(f"{what:<58} {measured:>10,.1f} {unit:<4} {ratio:>6.2f} x   {target:<12} {'ok' if good else 'MISSED'}")


@asynccontextmanager
async def schema(url: str) -> AsyncIterator[tuple[PostgresStore, str, str]]:
    """Open a store on a new table; give it, an insert statement for its table, and its URL."""
    name = f"b_{uuid4().hex}"
    async with PostgresStore.from_url(f"{url}?schema={name}") as store:
        await store.list("run")
        parameters = ", ".join(f"${number}" for number in range(1, 16))
        yield store, f"insert into {name}.steps ({COLUMNS}) values ({parameters})", f"{url}?schema={name}"


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    gc.collect()
    started = perf_counter()
    await work()
    return perf_counter() - started


async def alone(url: str) -> None:
    """One run: an append over an insert on a held connection, turn about."""
    async with schema(url) as (store, insert, _):
        connection = await asyncpg.connect(url)
        ratios, appends = [], []
        for round_ in range(ROUNDS):
            ours, theirs = [], []
            for number in range(ALONE):
                mine, other = record("run", f"{round_}-{number}"), bare(record("bare", f"{round_}-{number}"))
                theirs.append(await seconds_of(connection.execute(insert, *other)))
                ours.append(await seconds_of(store.append(mine)))
            ratios.append(statistics.median(ours) / statistics.median(theirs))
            appends.append(statistics.median(ours))
        await connection.close()
    ratio = statistics.median(ratios)
    report("append, one run, over a bare insert", statistics.median(appends) * 1e6, "µs", ratio, "<= 1.25", good=ratio <= 1.25)


async def seconds_of(work: Awaitable[object]) -> float:
    started = perf_counter()
    await work
    return perf_counter() - started


async def many(url: str) -> None:
    """A thousand runs: appends, and whole steps, a second, over bare inserts by 200 tasks through a pool of 10."""
    async with schema(url) as (store, insert, _), asyncpg.create_pool(url, min_size=10, max_size=10) as pool:

        async def inserting(task: int, rows: list[Insert]) -> None:
            for row in rows:
                await pool.execute(insert, *row)

        async def appending(records: list[StepRecord]) -> None:
            for one in records:
                await store.append(one)

        async def stepping(run_id: str) -> None:
            runner = Runner(store, run_id)
            for number in range(STEPS):
                await runner.step(f"{number}", answer, number)

        append_ratios, step_ratios, appends, steps = [], [], [], []
        for round_ in range(ROUNDS):
            rows = [
                [bare(record(f"bare-{round_}-{task}", f"{number}")) for number in range(BARE // TASKS)] for task in range(TASKS)
            ]
            floor = BARE / await seconds(lambda: asyncio.gather(*(inserting(task, own) for task, own in enumerate(rows))))  # noqa: B023
            records = [[record(f"run-{round_}-{run}", f"{number}") for number in range(STEPS)] for run in range(RUNS)]
            ours = RUNS * STEPS / await seconds(lambda: asyncio.gather(*map(appending, records)))  # noqa: B023
            names = [f"steps-{round_}-{run}" for run in range(RUNS)]
            whole = RUNS * STEPS / await seconds(lambda: asyncio.gather(*map(stepping, names)))  # noqa: B023
            append_ratios.append(ours / floor)
            step_ratios.append(whole / floor)
            appends.append(ours)
            steps.append(whole)
    ratio = statistics.median(append_ratios)
    report(
        "appends, 1,000 runs, over 200 tasks on a pool of 10", statistics.median(appends), "/s", ratio, ">= 8", good=ratio >= 8
    )
    ratio = statistics.median(step_ratios)
    report("whole steps, 1,000 runs, over the same", statistics.median(steps), "/s", ratio, ">= 7", good=ratio >= 7)


async def answer(number: int) -> str:
    return VALUE


async def long(url: str) -> None:
    """Resume of a run of 100,000 steps, in a process of its own."""
    async with schema(url) as (store, _, store_url):
        for start in range(0, LONG, 1_000):
            await asyncio.gather(*(store.append(record("long", f"{number}")) for number in range(start, start + 1_000)))
        results = []
        for _ in range(ROUNDS):
            with multiprocessing.get_context("spawn").Pool(1) as processes:
                results.append(processes.apply(resume, (store_url,)))
    took, megabytes = (statistics.median(column) for column in zip(*results, strict=True))
    report("resume of 100,000 steps, over 2 s", took, "s", took / 2, "<= 1", good=took <= 2)
    report("memory for it, over 100 MB", megabytes, "MB", megabytes / 100, "<= 1", good=megabytes <= 100)


def resume(url: str) -> tuple[float, float]:
    async def main() -> tuple[float, float]:
        async with PostgresStore.from_url(url) as store:
            await store.list("none")
            before = resident()
            runner = Runner(store, "long")
            took = await seconds_of(runner.step("0", answer, 0, returns=None))
            return took, peak() - before

    import warnings

    warnings.simplefilter("ignore")  # the arguments are others than those recorded
    return asyncio.run(main())


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    for server in start_postgres():
        for measure in (alone, many, long):
            asyncio.run(measure(server.url))


if __name__ == "__main__":
    main()
