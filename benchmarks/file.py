"""The file store beside the bare disk: `python benchmarks/file.py [folder]`.

Bare means the same bytes written and synced without the store. Every figure is a median of rounds that take turns with the floor.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter

from durable_core import Runner, StepRecord
from durable_file import FileStore

RUNS = 1_000
RESULT = b'{"account":"acct_19fK2","balance":{"amount":1250,"currency":"EUR"}}'
_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def record(run: int, step: int, revision: int = 0) -> StepRecord:
    return StepRecord(run_id=f"run-{run:04}", step_id=f"step-{step:06}", revision=revision, result=RESULT)


class Bare:
    """A file that lines are written to and synced, nothing else."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.line = b'{"crc":"00000000",' + record(0, 0).to_json()[1:] + b"\n"

    def write(self) -> None:
        os.write(self.fd, self.line)
        _sync(self.fd)

    def seconds(self, times: int = 50) -> float:
        """Return the median time of one write, synced."""
        return median(timed(self.write) for _ in range(times))


def timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def show(what: str, value: str, target: str = "") -> None:
    print(f"{what:<58}{value:>12}   {target}".rstrip())


async def one_run(folder: Path) -> None:
    bare, rows = Bare(folder / "bare"), []
    async with FileStore(folder / "one.jsonl") as store:
        for step in range(400):
            start = perf_counter()
            await asyncio.to_thread(bare.write)
            threaded = perf_counter() - start
            entry = record(0, step)
            start = perf_counter()
            await store.append(entry)
            append = perf_counter() - start
            rows.append((timed(bare.write), threaded, append))
    floor, threaded, append = (median(column) for column in zip(*rows[20:], strict=True))
    show("write + fdatasync", f"{floor * 1e6:.0f} µs")
    show("the same in a worker thread", f"{threaded * 1e6:.0f} µs")
    show("append, one run", f"{append * 1e6:.0f} µs")
    show("  over write + fdatasync", f"{append / floor:.2f} x", "at most 2")
    show("  over the same in a worker thread", f"{append / threaded:.2f} x", "at most 1.5")


async def many_appends(store: FileStore, round_: int) -> float:
    """Return how many appends a second 1,000 runs make in one log."""
    each = 20
    work = [[record(run, step, round_) for step in range(each)] for run in range(RUNS)]

    async def one(records: Iterable[StepRecord]) -> None:
        for entry in records:
            await store.append(entry)

    start = perf_counter()
    await asyncio.gather(*map(one, work))
    return RUNS * each / (perf_counter() - start)


async def many_steps(store: FileStore, round_: int) -> float:
    """Return how many whole steps a second 1,000 runs make in one log, each run holding its lock."""
    each, entered, starts = 10, asyncio.Barrier(RUNS), []

    async def effect() -> dict[str, int]:
        return {"amount": 1250}

    async def one(run: int) -> None:
        async with Runner(store, run_id=f"flow-{round_}-{run:04}") as runner:
            await entered.wait()
            starts.append(perf_counter())
            for step in range(each):
                await runner.step(f"step-{step}", effect)
            ends.append(perf_counter())

    ends: list[float] = []
    await asyncio.gather(*map(one, range(RUNS)))
    return RUNS * each / (max(ends) - min(starts))


async def many_runs(folder: Path) -> None:
    bare = Bare(folder / "bare")
    async with FileStore(folder / "many.jsonl") as store:
        for what, measure, target in (("appends", many_appends, 15), ("steps", many_steps, 7)):
            rows = []
            for round_ in range(7):
                before = bare.seconds()
                rate = await measure(store, round_)
                floor = 2 / (before + bare.seconds())
                rows.append((rate, floor, rate / floor))
            rate, floor, ratio = (median(column) for column in zip(*rows, strict=True))
            show("write + fdatasync, a second", f"{floor:,.0f}")
            show(f"{what}, a second, {RUNS:,} runs at once in one log", f"{rate:,.0f}")
            show("  over write + fdatasync, a second", f"{ratio:.1f} x", f"at least {target}")


async def resume(path: Path) -> float:
    """Open the log and resume its run; return how many seconds that took."""

    async def never() -> dict[str, object]:
        raise AssertionError

    start = perf_counter()
    async with FileStore(path) as store, Runner(store, run_id="run-0000") as runner:
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


async def resumes(folder: Path) -> None:
    path = folder / "long.jsonl"
    async with FileStore(path) as store:
        await asyncio.gather(*(store.append(record(0, step)) for step in range(100_000)))
    (idle,) = in_child("--idle")
    rows = [in_child("--resume", path) for _ in range(5)]
    seconds, memory = (median(column) for column in zip(*rows, strict=True))
    show(f"resume of 100,000 steps ({path.stat().st_size / 1e6:.0f} MB)", f"{seconds:.2f} s", "at most 1")
    show("  memory over the interpreter with the library imported", f"{(memory - idle) / 1e6:.0f} MB", "at most 100")


def main() -> None:
    match sys.argv[1:]:
        case ["--resume", path]:
            print(asyncio.run(resume(Path(path))), peak_memory())
        case ["--idle"]:
            print(peak_memory())
        case [*folder]:
            with tempfile.TemporaryDirectory(dir=folder[0] if folder else ".") as name:
                for measure in (one_run, many_runs, resumes):
                    asyncio.run(measure(Path(name)))


if __name__ == "__main__":
    main()
