"""The Redis store beside bare commands of the same client: `python benchmarks/redis_store.py [url]`.

Bare means the same bytes, written by `HSET` to the same server. Without a URL the server of the tests is started, with
appendonly. Figures are medians of rounds that take turns with the floor.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from rows import row
from runs import add_flows, finding_seconds

from durable_core import Runner, StepRecord
from durable_redis import RedisStore

sys.path.append(str(Path(__file__).parents[1]))
from tests.servers.redis import KEEPING, redis_server

ROUNDS = 7
PIPELINE = 500
RESULT = b'{"account":"acct_19fK2","balance":{"amount":1250,"currency":"EUR"}}'


def record(run: int, step: int, revision: int = 0) -> StepRecord:
    return StepRecord(run_id=f"run-{run:05}", step_id=f"step-{step:06}", revision=revision, result=RESULT)


async def seconds_of(work: Awaitable[object]) -> float:
    start = perf_counter()
    await work
    return perf_counter() - start


async def one_run(store: RedisStore, client: Any) -> None:
    """Appends of one run, turn about with HSETs on a connection that is held, as the store holds one."""
    line = record(0, 0).to_json()
    connection = await client.connection_pool.get_connection()

    async def hset(field: str) -> None:
        await connection.send_command("HSET", "bare", field, line)
        await connection.read_response()

    rows = []
    await store.append(record(0, 999_999))
    for round_ in range(ROUNDS):
        bare, appends = [], []
        for step in range(500):
            entry = record(0, step, round_)
            bare.append(await seconds_of(hset(f"step-{step}")))
            appends.append(await seconds_of(store.append(entry)))
        rows.append((median(bare), median(appends), median(appends) / median(bare)))
    await client.connection_pool.release(connection)
    floor, append, ratio = (median(column) for column in zip(*rows, strict=True))
    row("bare HSET on a held connection", floor * 1e6, None, "µs")
    row("append, one run", append * 1e6, None, "µs")
    row("append, one run, over a bare HSET", ratio, 1.75, "x")


async def pipelined(client: Any, entries: list[StepRecord]) -> float:
    """Write the same bytes by hand, in pipelines; return the seconds."""
    lines = [(f"bare:{entry.run_id}", entry.step_id, entry.to_json()) for entry in entries]
    start = perf_counter()
    for begin in range(0, len(lines), PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for key, field, line in lines[begin : begin + PIPELINE]:
            pipeline.hset(key, field, line)
        await pipeline.execute()
    return perf_counter() - start


async def many_runs(store: RedisStore, client: Any, runs: int, each: int = 5) -> tuple[float, float]:
    """Return appends a second of runs that go on at once, their locks held, and how many a pipeline writes."""

    async def one(entries: list[StepRecord]) -> None:
        for entry in entries:
            await store.append(entry)

    rows = []
    async with AsyncExitStack() as locks:
        start = perf_counter()
        await asyncio.gather(*(locks.enter_async_context(store.lock(f"run-{run:05}")) for run in range(runs)))
        row(f"taking the locks of {runs:,} runs at once", (perf_counter() - start) / runs * 1e6, None, "µs a lock")
        for round_ in range(ROUNDS):
            work = [[record(run, step, round_ + runs) for step in range(each)] for run in range(runs)]
            bare = len(work) * each / await pipelined(client, [entry for entries in work for entry in entries])
            start = perf_counter()
            await asyncio.gather(*map(one, work))
            rows.append((runs * each / (perf_counter() - start), bare))
    rate, bare = (median(column) for column in zip(*rows, strict=True))
    return rate, bare


async def at_once(store: RedisStore, client: Any) -> None:
    rates = {}
    for runs in (100, 1_000, 10_000):
        rates[runs], bare = await many_runs(store, client, runs)
        row(f"appends a second, {runs:,} runs at once under their locks", rates[runs], None, "/s")
        if runs == 1_000:
            row("a pipeline of the same bytes, a second", bare, None, "/s")
            row("appends of 1,000 runs at once, over a pipeline", rates[runs] / bare, 0.3, "x", at_most=False)
        if runs > 100:
            row(f"an append among {runs:,} runs, over one among 100", rates[100] / rates[runs], 1.5, "x")


async def polling(store: RedisStore) -> None:
    """Look at 1,000 runs that wait, each at its wait, its flow and its cancellation, as often as the store says."""
    known = []
    for run in range(1_000):
        await store.append(record(run, 0))
        known += [(f"run-{run:05}", step, revision) for step, revision in (("step-000000", 9**9), ("$flow", 0), ("$cancel", -1))]
    # In a process that waits, each of them looks at one or three; the figure is that of three.
    for steps, looks in ((1, known[::3]), (3, known)):
        times = []
        for _ in range(30):
            start = process_time()
            assert await store.newer(looks) == []
            times.append(process_time() - start)
        row(f"polling 1,000 runs that wait, {steps} looks each, of a core", median(times) / store.poll_seconds * 100, 1.0, "%")


async def resume(url: str) -> float:
    """Resume the long run; return how many seconds that took."""

    async def never() -> dict[str, object]:
        raise AssertionError

    start = perf_counter()
    async with RedisStore.from_url(url) as store, Runner(store, run_id="run-99999") as runner:
        await runner.step("step-000000", never)
        await runner.step("step-099999", never)
        return perf_counter() - start


def peak_memory() -> int:
    """Return the most bytes that this process ever had; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def in_child(what: str, *args: object) -> list[float]:
    output = subprocess.check_output([sys.executable, __file__, what, *map(str, args)])
    return [float(word) for word in output.split()]


async def resumes(store: RedisStore, url: str) -> None:
    for start in range(0, 100_000, 5_000):
        await asyncio.gather(*(store.append(record(99_999, step)) for step in range(start, start + 5_000)))
    (idle,) = in_child("--idle")
    rows = [in_child("--resume", url) for _ in range(5)]
    seconds, memory = (median(column) for column in zip(*rows, strict=True))
    row("resume of a run of 100,000 steps", seconds, 2, "s")
    row("memory for it, over the interpreter with the library imported", (memory - idle) / 1e6, 100, "MB")


async def wakeups(store: RedisStore) -> None:
    """Take wake-ups where 100,000 are set, half of them due, over ten flows."""
    now = datetime.now(UTC)
    flows = [f"flow-{number}" for number in range(10)]
    for start in range(0, 100_000, 5_000):
        numbers = range(start, start + 5_000)
        times = [now + timedelta(seconds=number // 10 - 5_000) for number in numbers]
        await asyncio.gather(
            *(store.set_wakeup(f"run-{number:06}", flows[number % 10], at) for number, at in zip(numbers, times, strict=True))
        )
    hidden = timedelta(minutes=1)
    due = [await seconds_of(store.take_wakeups(flows, limit=20, visibility_timeout=hidden)) for _ in range(200)]
    row("20 wake-ups taken among 100,000, 10 flows", median(due) * 1e3, 20, "ms")
    while await store.take_wakeups(flows, limit=10_000, visibility_timeout=timedelta(days=1)):
        pass
    none = [await seconds_of(store.take_wakeups(flows, limit=20, visibility_timeout=hidden)) for _ in range(200)]
    row("a look at 100,000 wake-ups of which none is due", median(none) * 1e3, 20, "ms")


async def measure(url: str) -> None:
    async with RedisStore.from_url(url) as store, RedisStore.from_url(url) as bare:
        await one_run(store, bare._client)
        await at_once(store, bare._client)
        await polling(store)
        await resumes(store, url)
        await add_flows(store, 100_000)
        row("50 runs that wait, of 100,000", await finding_seconds(store) * 1e3, 100, "ms")
        await wakeups(store)


def main() -> None:
    match sys.argv[1:]:
        case ["--resume", url]:
            print(asyncio.run(resume(url)), peak_memory())
        case ["--idle"]:
            print(peak_memory())
        case [url]:
            asyncio.run(measure(url))
        case _:
            with redis_server(*KEEPING) as server:
                asyncio.run(measure(server.url))


if __name__ == "__main__":
    main()
