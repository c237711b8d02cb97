"""The table that every benchmark prints: a name, a figure, its limit, and whether the figure keeps it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from time import perf_counter

ROUNDS = 5


def row(name: str, value: float, limit: float | None, unit: str, *, at_most: bool = True) -> bool:
    """Print one row and return whether the limit is kept; a floor to compare with has no limit."""
    kept = limit is None or (value <= limit if at_most else value >= limit)
    allowed = "" if limit is None else f"at {'most' if at_most else 'least'} {limit:g}"
    verdict = "" if limit is None else "ok" if kept else "MISSED"
    print(f"{name:<78}{_figure(value):>10} {unit:<4} {allowed:<14}{verdict}".rstrip(), flush=True)
    return kept


def medians(*measures: Callable[[], float], rounds: int = ROUNDS) -> list[float]:
    """Let the measures take turns, so that a busy moment of the machine hits all of them; return the median of each."""
    return [median(figures) for figures in zip(*([measure() for measure in measures] for _ in range(rounds)), strict=True)]


async def async_medians(*measures: Callable[[], Awaitable[float]], rounds: int = ROUNDS) -> list[float]:
    """Do what `medians` does, with measures that are awaited."""
    return [median(figures) for figures in zip(*[[await measure() for measure in measures] for _ in range(rounds)], strict=True)]


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call of `work` takes."""
    began = perf_counter()
    work()
    return perf_counter() - began


async def async_seconds(work: Awaitable[object]) -> float:
    """Return how long awaiting `work` takes."""
    began = perf_counter()
    await work
    return perf_counter() - began


def in_child(*arguments: object) -> list[float]:
    """Run a new interpreter with `arguments`, such as a file and its own, and return the numbers that it printed."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # nobody compiles the library for each process
    output = subprocess.check_output([sys.executable, *map(str, arguments)], text=True, env=environment)
    return [float(word) for word in output.split()]


def peak_memory() -> int:
    """Return the most bytes that this process ever had; Linux only."""
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(kilobytes) * 1024


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
