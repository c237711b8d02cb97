"""What a step costs when nothing is stored but in memory: replaying one, and running one.

Prints the median of several rounds in microseconds. Durable's share is what remains after awaiting the bare function.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable

from durable_core import MemoryStore, Runner

STEPS = 5_000
ROUNDS = 9


async def untyped():  # type: ignore[no-untyped-def]  # the subject of the measurement
    return 5


async def typed(number: int) -> int:
    return number


async def awaits(ids: list[str]) -> None:
    for _ in ids:
        await untyped()  # type: ignore[no-untyped-call]  # as above


async def steps(runner: Runner, ids: list[str]) -> None:
    for step_id in ids:
        await runner.step(step_id, untyped)


async def typed_steps(runner: Runner, ids: list[str]) -> None:
    for number, step_id in enumerate(ids):
        await runner.step(step_id, typed, number)


async def main() -> None:
    figures: dict[str, list[float]] = {}
    ids = [f"step-{number}" for number in range(STEPS)]

    async def note(name: str, work: Awaitable[None]) -> None:
        """Note the microseconds that `work` takes for one step."""
        began = time.perf_counter()
        await work
        figures.setdefault(name, []).append((time.perf_counter() - began) / STEPS * 1e6)

    for _ in range(ROUNDS):
        plain, with_argument = MemoryStore(), MemoryStore()
        await note("bare await of the function", awaits(ids))
        async with Runner(plain, "run") as runner:
            await note("step that runs", steps(runner, ids))
        async with Runner(plain, "run") as runner:
            await note("replay, untyped, no argument", steps(runner, ids))
            await note("replay, untyped, no argument, once more", steps(runner, ids))
        async with Runner(with_argument, "run") as runner:
            await note("step that runs, typed, one argument", typed_steps(runner, ids))
        async with Runner(with_argument, "run") as runner:
            await note("replay, typed, one argument", typed_steps(runner, ids))
            await note("replay, typed, one argument, once more", typed_steps(runner, ids))
    targets = {
        "step that runs": 10,
        "replay, untyped, no argument, once more": 2,
        "replay, typed, one argument, once more": 4,
    }
    for name, values in figures.items():
        target = f"  (at most {targets[name]})" if name in targets else ""
        print(f"{name:45} {statistics.median(values):7.2f} µs, best {min(values):.2f}{target}")


asyncio.run(main())
