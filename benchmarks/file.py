"""The file store beside the bare disk: `python benchmarks/file.py [folder]`.

Bare means the same bytes written and synced without the store, in rounds that take turns with ours.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from uuid import uuid4

from rows import async_medians, in_child, peak_memory, row, seconds
from runs import add_flows, decision_seconds, effect, finding_seconds, step_seconds, waiting_share

from durable_core import Runner, StepRecord
from durable_file import FileStore

LONG = 100_000
RESULT = b'{"account":"acct_19fK2","balance":{"amount":1250,"currency":"EUR"}}'
_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def record(run: str, step: int) -> StepRecord:
    return StepRecord(run_id=run, step_id=f"step-{step:06}", result=RESULT)


class Bare:
    """A file that lines are written to and synced, nothing else."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.line = b'{"crc":"00000000",' + record("run-0000", 0).to_json()[1:] + b"\n"

    def write(self) -> None:
        os.write(self.fd, self.line)
        _sync(self.fd)

    def rate(self, times: int = 50) -> float:
        """Return how many writes a second are synced, by the median of some."""
        return 1 / median(seconds(self.write) for _ in range(times))


async def one_run(folder: Path) -> None:
    bare, columns = Bare(folder / "bare"), []
    async with FileStore(folder / "one.jsonl") as store:
        for step in range(400):
            start = perf_counter()
            await asyncio.to_thread(bare.write)
            threaded = perf_counter() - start
            entry = record("run", step)
            start = perf_counter()
            await store.append(entry)
            columns.append((seconds(bare.write), threaded, perf_counter() - start))
    floor, threaded, append = (median(column) for column in zip(*columns[20:], strict=True))
    row("write + fdatasync", floor * 1e6, None, "µs")
    row("the same in a worker thread", threaded * 1e6, None, "µs")
    row("append, one run, over write + fdatasync", append / floor, 2, "x")
    row("append, one run, over the same in a worker thread", append / threaded, 1.5, "x")


async def under_locks(store: FileStore, runs: int, each: int, *, whole: bool) -> float:
    """Return how many appends, or whole steps, a second so many runs make, each holding its lock."""
    entered, starts, ends, name = asyncio.Barrier(runs), list[float](), list[float](), uuid4().hex

    async def steps(run_id: str) -> None:
        async with Runner(store, run_id=run_id) as runner:
            await entered.wait()
            starts.append(perf_counter())
            for step in range(each):
                await runner.step(f"step-{step:06}", effect)
            ends.append(perf_counter())

    async def appends(run_id: str) -> None:
        records = [record(run_id, step) for step in range(each)]
        async with store.lock(run_id):
            await entered.wait()
            starts.append(perf_counter())
            for entry in records:
                await store.append(entry)
            ends.append(perf_counter())

    async with asyncio.TaskGroup() as tasks:
        for run in range(runs):
            tasks.create_task((steps if whole else appends)(f"{name}-{run:04}"))
    return runs * each / (max(ends) - min(starts))


async def one_log(folder: Path) -> None:
    bare = Bare(folder / "bare")
    async with FileStore(folder / "many.jsonl") as store:
        for what, whole, least in (("appends", False, 12), ("whole steps", True, 5)):

            async def ratio(whole: bool = whole) -> float:
                before = bare.rate()
                ours = await under_locks(store, 1_000, 10, whole=whole)
                return ours / ((before + bare.rate()) / 2)

            (figure,) = await async_medians(ratio)
            row(f"{what} of 1,000 runs in one log, locks held, over write + fdatasync", figure, least, "x", at_most=False)


async def a_folder(folder: Path) -> None:
    files = [Bare(folder / f"bare-{number}") for number in range(8)]

    def eight_threads(each: int = 100) -> float:
        """Return how many writes a second are synced by as many threads, each with a file of its own."""

        def write(file: Bare) -> None:
            for _ in range(each):
                file.write()

        with ThreadPoolExecutor(len(files)) as threads:
            return len(files) * each / seconds(lambda: list(threads.map(write, files)))

    async def ratio() -> float:
        before = eight_threads()
        async with FileStore(folder / f"runs-{uuid4().hex}") as store:
            ours = await under_locks(store, 200, 10, whole=False)
        return ours / ((before + eight_threads()) / 2)

    (figure,) = await async_medians(ratio)
    row("appends of 200 runs in a folder, locks held, over 8 threads' write + fdatasync", figure, 0.5, "x", at_most=False)


async def resume(path: Path) -> float:
    """Open the log and resume its run; return how many seconds that took."""

    async def never() -> dict[str, object]:
        raise AssertionError

    start = perf_counter()
    async with FileStore(path) as store, Runner(store, run_id="run") as runner:
        await runner.step("step-000000", never)
        await runner.step(f"step-{LONG - 1:06}", never)
        return perf_counter() - start


async def resumes(folder: Path) -> None:
    path = folder / "long.jsonl"
    async with FileStore(path) as store:
        await asyncio.gather(*(store.append(record("run", step)) for step in range(LONG)))
    (idle,) = in_child(__file__, "--idle")
    took, memory = (median(column) for column in zip(*(in_child(__file__, "--resume", path) for _ in range(5)), strict=True))
    row(f"resume of {LONG:,} steps ({path.stat().st_size / 1e6:.0f} MB)", took, 1, "s")
    row("  memory over the interpreter with the library imported", (memory - idle) / 1e6, 100, "MB")


async def many_runs(folder: Path) -> None:
    for place, name, counts in (("one.log.jsonl", "one log", (1_000, 10_000)), ("runs", "a folder", (1_000,))):
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(FileStore(folder / place))
            measures: list[Callable[[], Awaitable[float]]] = [
                lambda store=store, runs=runs: step_seconds(store, runs)
                for runs in (100, *counts)  # type: ignore[misc]
            ]
            hundred, *others = await async_medians(*measures, rounds=3)
            row(f"a step under the lock, 100 runs at once in {name}", hundred * 1e6, None, "µs")
            for runs, figure in zip(counts, others, strict=True):
                row(f"a step where {runs:,} runs go on at once in {name}, over 100", figure / hundred, 1.5, "x")


async def waiting(folder: Path) -> None:
    async with FileStore(folder / "waiting") as store:
        row("an approval to the run of the same process going on", await decision_seconds(store) * 1e3, 5, "ms")
        row("1,000 waiting runs in a folder, of a core", await waiting_share(store), 1, "%")


async def finding(folder: Path) -> None:
    """Find runs without an index: all logs are read."""
    for name in ("log.jsonl", "folder"):
        async with FileStore(folder / uuid4().hex / name) as store:
            await add_flows(store, 1_000)
            row(f"50 runs that wait, of 1,000 in a {name}", await finding_seconds(store) * 1e3, None, "ms")


def main() -> None:
    match sys.argv[1:]:
        case ["--resume", path]:
            print(asyncio.run(resume(Path(path))), peak_memory())
        case ["--idle"]:
            print(peak_memory())
        case [*place]:
            with tempfile.TemporaryDirectory(dir=place[0] if place else ".") as name:
                for measure in (one_run, one_log, a_folder, resumes, many_runs, waiting, finding):
                    asyncio.run(measure(Path(name)))


if __name__ == "__main__":
    main()
