"""The Redis store beside bare commands of the same client: `python benchmarks/redis_store.py [url]`.

Without a URL the server of the tests is started, with appendonly. Figures are medians of rounds that take turns with the floor.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from durable_core import Runner, StepRecord
from durable_redis import RedisStore

sys.path.append(str(Path(__file__).parents[1]))
from tests.servers.redis import KEEPING, redis_server

RUNS = 1_000
ROUNDS = 7
RESULT = b'{"account":"acct_19fK2","balance":{"amount":1250,"currency":"EUR"}}'


def record(run: int, step: int, revision: int = 0) -> StepRecord:
    return StepRecord(run_id=f"run-{run:04}", step_id=f"step-{step:06}", revision=revision, result=RESULT)


def show(what: str, value: str, target: str = "") -> None:
    print(f"{what:<58}{value:>12}   {target}".rstrip())


async def hsets(client: Any, times: int = 500) -> float:
    """Return the seconds of one bare HSET, awaited one at a time."""
    line = record(0, 0).to_json()
    start = perf_counter()
    for step in range(times):
        await client.hset("bare", f"step-{step}", line)
    return (perf_counter() - start) / times


async def one_run(store: RedisStore, client: Any) -> None:
    """Appends of one run, turn about with HSETs by a client, and on a connection of their own as the store holds one."""
    line = record(0, 0).to_json()
    connection = await client.connection_pool.get_connection()

    async def hset_held(field: str) -> None:
        await connection.send_command("HSET", "bare", field, line)
        await connection.read_response()

    rows = []
    await store.append(record(0, 999_999))
    for round_ in range(ROUNDS):
        floors, helds, appends = [], [], []
        for step in range(500):
            entry = record(0, step, round_)
            floors.append(await seconds_of(client.hset("bare", f"step-{step}", line)))
            helds.append(await seconds_of(hset_held(f"step-{step}")))
            appends.append(await seconds_of(store.append(entry)))
        floor, held, append = map(median, (floors, helds, appends))
        rows.append((floor, held, append, append / floor, append / held))
    await client.connection_pool.release(connection)
    floor, held, append, ratio, over_held = (median(column) for column in zip(*rows, strict=True))
    show("HSET", f"{floor * 1e6:.0f} µs")
    show("HSET without the client's pool", f"{held * 1e6:.0f} µs")
    show("append, one run", f"{append * 1e6:.0f} µs")
    show("  over HSET", f"{ratio:.2f} x", "at most 1.4")
    show("  over HSET without the client's pool", f"{over_held:.2f} x")


async def seconds_of(work: Awaitable[object]) -> float:
    start = perf_counter()
    await work
    return perf_counter() - start


async def many_runs(store: RedisStore, client: Any) -> None:
    each, rows = 5, []

    async def one(records: list[StepRecord]) -> None:
        for entry in records:
            await store.append(entry)

    for round_ in range(ROUNDS):
        work = [[record(run, step, round_) for step in range(each)] for run in range(RUNS)]
        before = await hsets(client)
        start = perf_counter()
        await asyncio.gather(*map(one, work))
        rate = RUNS * each / (perf_counter() - start)
        floor = 2 / (before + await hsets(client))
        rows.append((floor, rate, rate / floor))
    floor, rate, ratio = (median(column) for column in zip(*rows, strict=True))
    show("HSETs awaited one at a time, a second", f"{floor:,.0f}")
    show(f"appends, a second, {RUNS:,} runs at once", f"{rate:,.0f}")
    show("  over HSETs, a second", f"{ratio:.1f} x", "at least 3")


async def resume(url: str) -> float:
    """Resume the long run; return how many seconds that took."""

    async def never() -> dict[str, object]:
        raise AssertionError

    start = perf_counter()
    async with RedisStore.from_url(url) as store, Runner(store, run_id="run-9999") as runner:
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
        await asyncio.gather(*(store.append(record(9999, step)) for step in range(start, start + 5_000)))
    (idle,) = in_child("--idle")
    rows = [in_child("--resume", url) for _ in range(5)]
    seconds, memory = (median(column) for column in zip(*rows, strict=True))
    show("resume of 100,000 steps", f"{seconds:.2f} s", "at most 2")
    show("  memory over the interpreter with the library imported", f"{(memory - idle) / 1e6:.0f} MB", "at most 100")


async def measure(url: str) -> None:
    async with RedisStore.from_url(url) as store, RedisStore.from_url(url) as bare:
        await one_run(store, bare._client)
        await many_runs(store, bare._client)
        await resumes(store, url)


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
