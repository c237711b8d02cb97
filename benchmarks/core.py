"""What a step costs when nothing is stored but in memory: replaying one, and running one.

Prints the median of several rounds in microseconds. Durable's share is what remains after awaiting the bare function.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from durable_core import MemoryStore, Runner

STEPS = 5_000
ROUNDS = 9


async def untyped():  # type: ignore[no-untyped-def]  # the subject of the measurement
    return 5


async def typed(number: int) -> int:
    return number


async def timed(work: Callable[[int], Awaitable[object]]) -> float:
    """Return the microseconds that `work` takes for one step."""
    began = time.perf_counter()
    for number in range(STEPS):
        await work(number)
    return (time.perf_counter() - began) / STEPS * 1e6


async def main() -> None:
    figures: dict[str, list[float]] = {}
    ids = [f"step-{number}" for number in range(STEPS)]
    for _ in range(ROUNDS):
        plain, with_argument = MemoryStore(), MemoryStore()

        async def bare(number: int) -> None:
            await untyped()

        async def first(number: int) -> None:
            await runner.step(ids[number], untyped)

        async def argument(number: int) -> None:
            await runner.step(ids[number], typed, number)

        async def note(name: str, work: Callable[[int], Awaitable[object]]) -> None:
            figures.setdefault(name, []).append(await timed(work))

        await note("bare await of the function", bare)
        async with Runner(plain, "run") as runner:
            await note("step that runs", first)
        async with Runner(plain, "run") as runner:
            await note("replay, untyped, no argument", first)
            await note("replay, untyped, no argument, once more", first)
        async with Runner(with_argument, "run") as runner:
            await note("step that runs, typed, one argument", argument)
        async with Runner(with_argument, "run") as runner:
            await note("replay, typed, one argument", argument)
            await note("replay, typed, one argument, once more", argument)
    targets = {
        "step that runs": 10,
        "replay, untyped, no argument, once more": 2,
        "replay, typed, one argument, once more": 4,
    }
    for name, values in figures.items():
        target = f"  (at most {targets[name]})" if name in targets else ""
        print(f"{name:45} {statistics.median(values):7.2f} µs, best {min(values):.2f}{target}")


asyncio.run(main())
