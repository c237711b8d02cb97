"""The command: its start beside an empty click group, and its lists beside reading the same, `python benchmarks/cli.py`."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.rows import medians, row
from benchmarks.runs import add_flows
from durable_core import StepRecord, open_store
from tests.servers.postgres import start_postgres

MANY = 100_000
STARTS = 15
EMPTY = "import click\n@click.group()\ndef empty() -> None: ...\nempty(['--help'])"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
READ = """
import asyncio, sys
from durable_core import control, open_store

async def read(url: str) -> None:
    async with open_store(url) as store:
        {}

asyncio.run(read(sys.argv[1]))
"""
READ_STEPS = READ.format('await control.status(store, "long", entries=await store.list("long"))')
READ_RUNS = READ.format("assert len([run async for run in control.runs(store, only_flows=True, limit=21)]) == 21")
DURABLE = (sys.executable, "-m", "durable_cli")


def cpu(*command: str) -> float:
    """Return the CPU time that a command takes, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def wall(*command: str) -> float:
    """Return how long a command takes, in seconds."""
    began = perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return perf_counter() - began


async def fill(url: str) -> None:
    """Record a run of so many steps, and so many runs with a flow."""
    async with open_store(url) as store:
        for start in range(0, MANY, 1_000):
            times = [BEGAN + timedelta(seconds=number) for number in range(start, start + 1_000)]
            steps = [
                StepRecord(run_id="long", step_id=f"step-{start + number}", result=b'{"sent":true}', started_at=at, ended_at=at)
                for number, at in enumerate(times)
            ]
            await asyncio.gather(*map(store.append, steps))
        await add_flows(store, MANY)


def start() -> bool:
    empty, durable = medians(lambda: cpu(sys.executable, "-c", EMPTY), lambda: cpu(*DURABLE, "--help"), rounds=STARTS)
    row("an empty click group: CPU", empty, None, "ms")
    row("`durable --help`: CPU", durable, None, "ms")
    return row("`durable --help` over an empty click group", durable / empty, 1.3, "x")


def lists(name: str, url: str) -> bool:
    """Measure on one store, in seconds of the whole command."""
    asyncio.run(fill(url))
    kept = True
    for what, read, command in (
        (f"show of {MANY:,} steps", READ_STEPS, ("show", "long")),
        (f"runs over {MANY:,} runs", READ_RUNS, ("runs",)),
    ):
        bare, ours = (sys.executable, "-c", read, url), (*DURABLE, *command, "--store", url)
        floor, whole = medians(partial(wall, *bare), partial(wall, *ours))
        row(f"{name}: reading for {what}", floor, None, "s")
        kept &= row(f"{name}: {what}", whole, 2, "s")
    return kept


def main() -> bool:
    kept = start()
    with TemporaryDirectory() as folder:
        kept &= lists("sqlite", f"sqlite:{folder}/runs.db")
    for server in start_postgres():
        kept &= lists("postgres", server.url)
    return kept


if __name__ == "__main__":
    main()
