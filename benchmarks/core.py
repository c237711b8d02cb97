"""What the library itself costs, on `MemoryStore`: steps, replays, waiting runs, many runs at once, and its import."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from time import perf_counter, process_time

from rows import async_medians, async_seconds, in_child, medians, row
from runs import decision_seconds, step_seconds, waiting_share

from durable_core import MemoryStore, Runner
from durable_core.testing import FakeClock

STEPS = 5_000
ROUNDS = 9
IDS = [f"step-{number}" for number in range(STEPS)]


async def untyped():  # type: ignore[no-untyped-def]  # the subject of the measurement
    return 5


async def typed(number: int) -> int:
    return number


async def bare() -> None:
    for _ in IDS:
        await untyped()  # type: ignore[no-untyped-call]  # as above


async def untyped_steps(runner: Runner) -> None:
    for step_id in IDS:
        await runner.step(step_id, untyped)


async def typed_steps(runner: Runner) -> None:
    for number, step_id in enumerate(IDS):
        await runner.step(step_id, typed, number)


Steps = Callable[[Runner], Awaitable[None]]


async def microseconds(work: Awaitable[None]) -> float:
    """Return what `work` takes for one step."""
    return await async_seconds(work) / STEPS * 1e6


async def first(steps: Steps) -> float:
    """Run the steps for the first time."""
    async with Runner(MemoryStore(), "run") as runner:
        return await microseconds(steps(runner))


async def replayed(steps: Steps) -> float:
    """Replay the steps once, on a runner that has just resumed the run."""
    store = MemoryStore()
    async with Runner(store, "run") as runner:
        await runner.step("begin", typed, 1)
        await steps(runner)
    async with Runner(store, "run") as runner:
        await runner.step("begin", typed, 1)  # reads the log
        return await microseconds(steps(runner))


async def one_run() -> None:
    measures = [
        lambda: microseconds(bare()),
        lambda: first(untyped_steps),
        lambda: first(typed_steps),
        lambda: replayed(untyped_steps),
        lambda: replayed(typed_steps),
    ]
    floor, ran, ran_typed, replay, replay_typed = await async_medians(*measures, rounds=ROUNDS)
    row("bare await of the function", floor, None, "µs")
    row("a step's own overhead", ran - floor, 15, "µs")
    row("a step's own overhead, typed, one argument", ran_typed - floor, 15, "µs")
    row("replay on a resumed runner, untyped, no argument", replay, 2, "µs")
    row("replay on a resumed runner, typed, one argument", replay_typed, 4, "µs")


async def many_runs() -> None:
    row("an approval to the run of the same process going on", await decision_seconds(MemoryStore()) * 1e3, 5, "ms")
    hundred, thousand, myriad = await async_medians(
        *(lambda runs=runs: step_seconds(MemoryStore(), runs) for runs in (100, 1_000, 10_000)),  # type: ignore[misc]
        rounds=3,
    )
    row("a step under the lock, 100 runs at once", hundred * 1e6, None, "µs")
    row("a step where 1,000 runs go on at once, over 100", thousand / hundred, 1.5, "x")
    row("a step where 10,000 runs go on at once, over 100", myriad / hundred, 1.5, "x")
    row("1,000 waiting runs, of a core", await waiting_share(MemoryStore()), 1, "%")


async def a_month(patience: float = 30) -> None:
    """Let a run wait for a month of virtual time; stop early where that takes more than `patience` seconds."""
    clock = FakeClock()

    async def wait() -> None:
        async with Runner(MemoryStore(), "run", clock=clock) as runner:
            await runner.event("never", timeout=timedelta(days=60))

    async def minutes(count: int) -> float:
        began = process_time()
        await clock.sleep(60 * count)
        return (process_time() - began) / count

    waiting = asyncio.create_task(wait())
    await clock.sleep(1)
    before, began, days = await minutes(10), perf_counter(), 0
    while days < 30 and perf_counter() - began < patience:
        await clock.sleep(timedelta(days=1).total_seconds())
        days += 1
    after = await minutes(10)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    row(f"a minute of waiting after {days} days, over the first minutes", after / before, 1.5, "x")


def imports() -> None:
    def milliseconds(names: str) -> float:
        code = f"from time import perf_counter as now; began = now(); import {names}; print((now() - began) * 1e3)"
        return in_child("-c", code)[0]

    floor, ours = medians(lambda: milliseconds("asyncio, msgspec"), lambda: milliseconds("durable_core"), rounds=ROUNDS)
    row("import asyncio, msgspec", floor, None, "ms")
    row("import durable_core, over that", ours / floor, 1.3, "x")


async def main() -> None:
    for measure in (one_run, many_runs, a_month):
        await measure()


if __name__ == "__main__":
    asyncio.run(main())
    imports()
