"""What a worker costs, and how soon runs go on, beside many that are suspended: `python benchmarks/worker.py [store ...]`.

10,000 runs wait for a person, on S3 1,000. The worker is in this process; servers are those of the tests.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from rows import async_seconds, row

sys.path.append(str(Path(__file__).parents[1]))
from durable_core import Runner, RunSuspended, Store, control, flow, open_store
from durable_core.engine import FLOW, decided
from durable_core.store import wakeups_of
from durable_worker import Worker
from tests.soak.__main__ import STORES, place

WINDOW = 20.0  # seconds
DECISIONS = 10
GOES_ON = {"file": 5.0, "s3": 20.0}


@flow(wait_limit=0)
async def refund(runner: Runner, order: int) -> bool:
    return (await runner.approval("approve", order)).approved


@flow(concurrency=("pdf", 4))
async def pdf(runner: Runner) -> None:
    await runner.step("render", asyncio.sleep, 1.0, returns=None)


async def suspend(store: Store, runs: int) -> None:
    """Run so many until each waits for a person."""

    async def one(number: int) -> None:
        with suppress(RunSuspended):
            await refund.run(store, f"refund-{number:05}", order=number)

    for start in range(0, runs, 200):
        await asyncio.gather(*map(one, range(start, min(runs, start + 200))))


async def idle(store: Store, name: str, runs: int) -> None:
    """Measure a worker that finds nothing to do: a poll, a whole round with its sweep, and its share of a core."""
    if (wakeups := wakeups_of(store)) is not None:
        polls = []
        for _ in range(50):
            taking = wakeups.take_wakeups(["refund", "pdf"], limit=20, visibility_timeout=timedelta(minutes=1))
            polls.append(await async_seconds(taking))
        row(f"{name}: a poll beside {runs:,} suspended runs", median(polls) * 1e3, None, "ms")
    worker = Worker(store, [refund, pdf])
    first, *others = [await async_seconds(worker.sweep()) for _ in range(4)]
    row(f"{name}: the sweep of them, the first one", first * 1e3, None, "ms")
    row(f"{name}: the sweep of them, later ones", median(others) * 1e3, None, "ms")
    async with Worker(store, [refund, pdf]):
        await asyncio.sleep(1 + 2 * first)  # until its first sweep is over
        began, start = process_time(), perf_counter()
        await asyncio.sleep(WINDOW)
        share = (process_time() - began) / (perf_counter() - start)
    row(f"{name}: a worker beside them that has nothing to do, of a core", share * 100, None, "%")


async def going_on(store: Store, name: str, runs: int) -> None:
    """Approve one after the other, and wait until a worker has ended the run; the worst of them counts."""
    taken = []
    async with Worker(store, [refund]):
        await asyncio.sleep(3)
        for number in range(DECISIONS):
            run_id = f"refund-{number * runs // DECISIONS:05}"
            began = perf_counter()
            await control.approve(store, run_id, "approve", by="alice")
            while not decided(await store.get(run_id, FLOW)):
                await asyncio.sleep(0.01)
            taken.append(perf_counter() - began)
    row(f"{name}: an approval to the end of its run, beside them", median(taken), None, "s")
    row(f"{name}: the longest of {DECISIONS}", max(taken), GOES_ON.get(name, 1.0), "s")


async def limited(store: Store, name: str, url: str) -> None:
    """Let two workers drive 100 runs of which no more than four may go on at once."""
    await asyncio.gather(*(pdf.start(store, f"pdf-{number:03}") for number in range(100)))
    began = perf_counter()
    async with open_store(url) as other, Worker(store, [pdf]), Worker(other, [pdf]):
        for number in range(100):
            while not decided(await store.get(f"pdf-{number:03}", FLOW)):
                await asyncio.sleep(0.1)
    row(f"{name}: 100 runs of a second each, four at once", perf_counter() - began, 30, "s")


async def measure(name: str, url: str) -> None:
    runs = 1_000 if name == "s3" else 10_000
    async with open_store(url) as store:
        await suspend(store, runs)
        await idle(store, name, runs)
        await going_on(store, name, runs)
        await limited(store, name, url)


def main() -> None:
    for name in sys.argv[1:] or STORES:
        with tempfile.TemporaryDirectory(dir=".") as folder, place(name, Path(folder).resolve(), lease=15) as (url, _):
            asyncio.run(measure(name, url))


if __name__ == "__main__":
    main()
