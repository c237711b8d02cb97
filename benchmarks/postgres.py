"""PostgreSQL: the store beside hand-written SQL for the same rows on the same server, `python benchmarks/postgres.py`."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from uuid import uuid4

import asyncpg

from durable_core import Runner, StepRecord
from durable_postgres import PostgresStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.rows import async_seconds, in_child, peak_memory, row
from benchmarks.runs import add_flows, finding_seconds
from tests.servers.postgres import start_postgres

ROUNDS = 5
ALONE = 400
RUNS, STEPS = 1_000, 10
BATCH, CONNECTIONS = 500, 2
LONG = 100_000
VALUE = "the account 123456 of someone@example.com, as was agreed"
RESULT = f'"{VALUE}"'.encode()

COLUMNS = {
    "run_id": "text",
    "step_id": "text",
    "revision": "bigint",
    "status": "text",
    "kind": "text",
    "name": "text",
    "result": "json",
    "error": "json",
    "note": "json",
    "until": "timestamptz",
    "attempt": "bigint",
    "started_at": "timestamptz",
    "ended_at": "timestamptz",
    "id": "text",
    "fingerprint": "text",
}
Insert = tuple[object, ...]


def record(run_id: str, step_id: str) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=step_id, result=RESULT, fingerprint="0123456789abcdef")


def bare(record: StepRecord) -> Insert:
    """Return the row of `record`, as a program without us would have it ready."""
    return (
        *(record.run_id, record.step_id, record.revision, record.status, record.kind, record.name, RESULT.decode(), None, None),
        *(record.until, record.attempt, record.started_at, record.ended_at, record.id, record.fingerprint),
    )


async def answer(number: int) -> str:
    return VALUE


class Bench:
    """A store on a new table, and hand-written statements for the same table."""

    def __init__(self, store: PostgresStore, url: str, schema: str) -> None:
        self.store = store
        self.url = url
        self.schema = schema
        names = ", ".join(COLUMNS)
        self.insert = f"insert into {schema}.steps ({names}) values ({', '.join(f'${n}' for n in range(1, 16))})"
        arrays = ", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(COLUMNS.values(), start=1))
        self.insert_many = f"insert into {schema}.steps ({names}) select * from unnest({arrays})"

    async def batches(self, rows: list[Insert]) -> float:
        """Return how many rows a second hand-written inserts of 500 rows write, on held connections."""
        connections = [await asyncpg.connect(self.url) for _ in range(CONNECTIONS)]
        batches = [[*zip(*rows[start : start + BATCH], strict=True)] for start in range(0, len(rows), BATCH)]

        async def write(connection: asyncpg.Connection, own: list[list[tuple[object, ...]]]) -> None:
            for columns in own:
                await connection.execute(self.insert_many, *columns)

        await asyncio.gather(*(connection.execute("select 1") for connection in connections))
        gc.collect()
        shares = [batches[number::CONNECTIONS] for number in range(CONNECTIONS)]
        took = await async_seconds(asyncio.gather(*map(write, connections, shares)))
        for connection in connections:
            await connection.close()
        return len(rows) / took

    async def steps(self, prefix: str, runs: int, steps: int = STEPS) -> float:
        """Return the seconds that whole steps take, of runs that are under way at once and hold their locks."""

        async def run(run_id: str) -> None:
            async with Runner(self.store, run_id) as runner:
                for number in range(steps):
                    await runner.step(f"{number}", answer, number)

        gc.collect()
        return await async_seconds(asyncio.gather(*(run(f"{prefix}-{number}") for number in range(runs))))

    async def appends(self, prefix: str) -> float:
        """Return how many records a second are appended, by runs that are under way at once and hold their locks."""
        records = [[record(f"{prefix}-{run}", f"{number}") for number in range(STEPS)] for run in range(RUNS)]

        async def run(own: list[StepRecord]) -> None:
            async with self.store.lock(own[0].run_id):
                for one in own:
                    await self.store.append(one)

        gc.collect()
        return RUNS * STEPS / await async_seconds(asyncio.gather(*map(run, records)))


@asynccontextmanager
async def bench(url: str) -> AsyncIterator[Bench]:
    schema = f"b_{uuid4().hex}"
    async with PostgresStore.from_url(f"{url}?schema={schema}") as store:
        await store.list("run")
        yield Bench(store, url, schema)


async def alone(url: str) -> None:
    async with bench(url) as on, on.store.lock("run"):
        connection = await asyncpg.connect(url)
        ratios, outsiders, floors = [], [], []
        for round_ in range(ROUNDS):
            ours, told, theirs = [], [], []
            for number in range(ALONE):
                mine, other = record("run", f"{round_}-{number}"), bare(record("bare", f"{round_}-{number}"))
                theirs.append(await async_seconds(connection.execute(on.insert, *other)))
                ours.append(await async_seconds(on.store.append(mine)))
                told.append(await async_seconds(on.store.append(record("another", f"{round_}-{number}"))))
            ratios.append(median(ours) / median(theirs))
            outsiders.append(median(told) / median(theirs))
            floors.append(median(theirs))
        await connection.close()
    row("bare insert on a held connection", median(floors) * 1e6, None, "µs")
    row("append, one run under its lock, over a bare insert", median(ratios), 1.25, "x")
    row("append by who doesn't hold the lock, which tells the run's watches, over that", median(outsiders), None, "x")


async def many(url: str) -> None:
    async with bench(url) as on:
        floors, appends, steps = [], [], []
        for round_ in range(ROUNDS):
            rows = [bare(record(f"bare-{round_}-{run}", f"{number}")) for run in range(RUNS) for number in range(STEPS)]
            floors.append(await on.batches(rows))
            appends.append(await on.appends(f"appends-{round_}"))
            steps.append(RUNS * STEPS / await on.steps(f"steps-{round_}", RUNS))
    row("inserts of 500 rows on 2 held connections", median(floors), None, "/s")
    row("appends, 1,000 runs under their locks", median(appends), None, "/s")
    ratios = [ours / floor for ours, floor in zip(appends, floors, strict=True)]
    row("appends, 1,000 runs under their locks, over inserts of 500 rows", median(ratios), 0.6, "x", at_most=False)
    row("whole steps, 1,000 runs under their locks", median(steps), None, "/s")
    ratios = [ours / floor for ours, floor in zip(steps, floors, strict=True)]
    row("whole steps, 1,000 runs under their locks, over inserts of 500 rows", median(ratios), 0.2, "x", at_most=False)


async def at_once(url: str) -> None:
    """Compare the cost of a step with 100, 1,000 and 10,000 runs at once."""
    async with bench(url) as on:
        costs: dict[int, list[float]] = {100: [], 1_000: [], 10_000: []}
        for round_ in range(3):
            for runs, found in costs.items():
                times = max(1_000 // runs, 1)
                took = sum([await on.steps(f"{round_}-{runs}-{again}", runs) for again in range(times)])
                found.append(took / (times * runs * STEPS))
    least, more, most = (median(found) for found in costs.values())
    row("whole step, 100 runs at once", least * 1e6, None, "µs")
    row("whole step, 1,000 runs at once, over 100", more / least, 1.5, "x")
    row("whole step, 10,000 runs at once (max_locks_per_transaction=256), over 100", most / least, 1.5, "x")


async def holding(url: str) -> None:
    """Compare taking and giving a lock with none and with 10,000 held."""

    async def take(store: PostgresStore) -> float:
        took = []
        for number in range(300):
            began = perf_counter()
            async with store.lock(f"one-{number}"):
                pass
            took.append(perf_counter() - began)
        return median(took)

    async with bench(url) as on, AsyncExitStack() as stack:
        await stack.enter_async_context(on.store.lock("first"))
        before = await take(on.store)
        await asyncio.gather(*(stack.enter_async_context(on.store.lock(f"held-{number}")) for number in range(10_000)))
        after = await take(on.store)
    row("taking and giving a lock", before * 1e6, None, "µs")
    row("taking and giving a lock, with 10,000 held, over none", after / before, 1.5, "x")


async def waiting(url: str) -> None:
    """The share of a core that polling for 1,000 waiting runs takes."""
    async with bench(url) as on:
        known = [(f"waiting-{number}", "approve", 0) for number in range(RUNS)]
        await asyncio.gather(*(on.store.append(record(run_id, step_id)) for run_id, step_id, _ in known))
        await on.store.newer(known)
        began = process_time()
        for _ in range(100):
            await on.store.newer(known)
        share = (process_time() - began) / 100 / on.store.poll_seconds
    row("polling for 1,000 waiting runs, of a core", share * 100, 1, "%")


async def finding(url: str) -> None:
    async with bench(url) as on:
        await add_flows(on.store, LONG)
        connection = await asyncpg.connect(url)
        await connection.execute("analyze")  # as autovacuum does within a minute
        await connection.close()
        row("50 runs that wait, of 100,000", await finding_seconds(on.store) * 1e3, 100, "ms")


async def wakeups(url: str) -> None:
    """Take 20 wake-ups of one flow and of fifty, among 100,000: where none is due, and where all are."""
    names = [f"flow-{number}" for number in range(50)]
    hidden = timedelta(minutes=1)
    connection = await asyncpg.connect(url)

    async def take(store: PostgresStore, flows: list[str], limit: int = 20) -> float:
        took = []
        for _ in range(50):
            began = perf_counter()
            found = await store.take_wakeups(flows, limit=limit, visibility_timeout=hidden)
            took.append(perf_counter() - began)
            await store.clear_wakeups(found)
        return median(took) * 1e3

    async with bench(url) as on:
        later = datetime.now(UTC) + timedelta(days=1)
        sets = (on.store.set_wakeup(f"run-{number}", names[number % 50], later) for number in range(LONG))
        row("wake-ups set, 100,000 at once", LONG / await async_seconds(asyncio.gather(*sets)), None, "/s")
        for what in ("none is due", "all are due"):
            for flows in (names[:1], names):
                about = f"take_wakeups among 100,000 of 50 flows, of {len(flows)}, {what}"
                row(about, await take(on.store, flows), 20, "ms")
            await connection.execute(f"update {on.schema}.steps_wakes set shows_at = now() - random() * interval '1 day'")
    await connection.close()


async def long(url: str) -> None:
    schema = f"b_{uuid4().hex}"
    async with PostgresStore.from_url(f"{url}?schema={schema}") as store:
        for start in range(0, LONG, 1_000):
            await asyncio.gather(*(store.append(record("long", f"{number}")) for number in range(start, start + 1_000)))
    results = [in_child(__file__, f"{url}?schema={schema}") for _ in range(ROUNDS)]
    took, grown = (median(column) for column in zip(*results, strict=True))
    row("resume of 100,000 steps", took, 2, "s")
    row("memory for it, over the interpreter", grown, 100, "MB")


async def resume(url: str) -> None:
    warnings.simplefilter("ignore")  # the arguments are others than those recorded
    async with PostgresStore.from_url(url) as store:
        await store.list("none")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        took = await async_seconds(Runner(store, "long").step("0", answer, 0, returns=None))
    print(took, (peak_memory() - before) / 1e6)


def main() -> None:
    if len(sys.argv) > 1:
        asyncio.run(resume(sys.argv[1]))
        return
    for server in start_postgres():
        for measure in (alone, many, waiting, finding, wakeups, long):
            asyncio.run(measure(server.url))
    for server in start_postgres("max_locks_per_transaction=256", "max_connections=100"):
        for measure in (at_once, holding):
            asyncio.run(measure(server.url))


if __name__ == "__main__":
    main()
