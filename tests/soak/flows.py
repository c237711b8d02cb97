"""The flows of a soak, how many runs of each there are, and how each has to end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

from durable_core import Flow, Recovered, RunCancelled, Runner, StepFailed, control, current_step, flow
from durable_core.store import transact_of, transaction_of

from .side import note

T = TypeVar("T")
PLACES: Final = 4
"""How many runs of the flow `limited` may be driven at the same time."""
TABLE: Final = "soak_ledger"
SENT: Final = "send"
"""The step of the flow `once`, which makes no attempt after one that has ended."""
THREADS: Final = 40
"""How many synchronous steps a process has under way at once."""
CALLS: Final = 3 * THREADS
"""How many a run of `crowd` asks for at once."""
HANG_UP: Final = "hang-up"
"""The step of `crowd` that cancels its run."""
_MENDED: Final[list[Path]] = []


def keep_mended_in(folder: Path) -> None:
    """Name the folder that holds a file for each run whose failing step was mended."""
    _MENDED[:] = [folder]


def mended(run_id: str) -> Path:
    return _MENDED[0] / run_id.replace("/", "_")


def number_of(run_id: str) -> int:
    return int(run_id.split("/")[0].split("-")[1])


def begin() -> float:
    """Note that the effect of the step which is running here begins; return how long it lasts."""
    here = current_step()
    note("begin", here.run_id, here.step_id, attempt=here.attempt)
    return Random(f"{here.run_id} {here.step_id}").uniform(0, 0.05)


def end() -> None:
    here = current_step()
    note("end", here.run_id, here.step_id, attempt=here.attempt)


def work(value: str) -> str:
    """Have an effect, in a thread."""
    time.sleep(begin())
    end()
    return value


async def work_async(value: str) -> str:
    """Have an effect, on the loop."""
    await asyncio.sleep(begin())
    end()
    return value


async def awaited(runner: Runner, step_id: str, kind: str, wait: Awaitable[T], *, seconds: float = 0) -> T:
    """Note what a run waits for, and that it continued. The people read the first note, and decide."""
    note("wants", runner.run_id, step_id, kind=kind, until=seconds and time.monotonic() + seconds)
    try:
        value = await wait
    except (StepFailed, RunCancelled):
        note("on", runner.run_id, step_id)
        raise
    note("on", runner.run_id, step_id)
    return value


@flow
async def steps(runner: Runner) -> list[str]:
    note("enter", runner.run_id)
    one = await runner.step("one", work, "a")
    many = await runner.map("many", work_async, ["b", "c", "d"])
    _, won = await runner.first(
        "first",
        quick=lambda: runner.step("quick", work_async, "e"),
        late=lambda: runner.sleep("late", 3600),  # type: ignore[arg-type, return-value]
    )
    return [one, *many, str(won), await runner.step("last", work, "f")]


@flow(wait_limit=0)
async def sleeps(runner: Runner) -> str:
    note("enter", runner.run_id)
    await awaited(runner, "nap", "sleep", runner.sleep("nap", 1.5), seconds=1.5)
    await runner.step("between", work_async, "between")
    await awaited(runner, "again", "sleep", runner.sleep("again", 2), seconds=2)
    return await runner.step("wake", work, "awake")


@flow(wait_limit=0)
async def asks(runner: Runner) -> str:
    note("enter", runner.run_id)
    await runner.step("prepare", work, "ready")
    decision = await awaited(runner, "ok", "decide", runner.approval("ok", {"amount": 90}))
    if not decision.approved:
        return f"rejected by {decision.by}"
    return await runner.step("pay", work, f"paid by {decision.by}")


@flow
async def quorum(runner: Runner) -> str:
    """Wait in the worker for a while, and suspended then; two people decide."""
    note("enter", runner.run_id)
    approval = runner.approval("both", {"amount": 9000}, quorum=2, approvers=["alice", "bob"])
    decision = await awaited(runner, "both", "both", approval)
    return await runner.step("pay", work_async, f"approved {decision.approved}")


@flow(wait_limit=0)
async def listens(runner: Runner) -> str:
    note("enter", runner.run_id)
    before: str = await runner.event("before", returns=str)
    try:
        value: str = await awaited(runner, "packed", "send", runner.event("packed", returns=str, timeout=600))
    except StepFailed as failed:
        return await runner.step("apologise", work, str(failed.error.message if failed.error else ""))
    return await runner.step("ship", work, f"{before} {value}")


@flow
async def parent(runner: Runner) -> list[Any]:
    note("enter", runner.run_id)
    later = await runner.flow("later", asks, wait=False)
    one = await runner.flow("one", steps)
    two = await runner.flow("two", asks)
    return [one, two, await runner.result("got", later, returns=str)]


@flow
async def flaky(runner: Runner) -> str:
    """Fail twice, first by a task that somebody else cancels, with delays that are recorded."""
    note("enter", runner.run_id)

    async def call() -> str:
        await asyncio.sleep(begin())
        end()
        if current_step().attempt == 1:
            channel = asyncio.ensure_future(asyncio.sleep(60))
            channel.cancel()
            await channel
        if current_step().attempt == 2:
            raise ConnectionError("the bank is closed")
        return "third"

    async with asyncio.TaskGroup() as group:
        called = group.create_task(runner.step("call", call, max_attempts=3, retry_delay=1.2))
    return called.result()


@flow
async def books(runner: Runner) -> str:
    """Write a row of one's own with the step's record, where the store can."""
    note("enter", runner.run_id)
    await runner.step("prepare", work, "ready")
    run_id = runner.run_id

    def book(connection: Any) -> str:
        connection.execute(f"insert into {TABLE} values (?)", (run_id,))
        return "booked"

    async def book_async(connection: Any) -> str:
        await connection.execute(f"insert into {TABLE} values ($1)", run_id)
        return "booked"

    if transact_of(runner.store) is not None:
        return await runner.transaction("book", book)
    if transaction_of(runner.store) is not None:
        return await runner.transaction("book", book_async)
    return await runner.step("book", work, "booked")


@flow(concurrency=("soak", PLACES))
async def limited(runner: Runner) -> str:
    note("enter", runner.run_id)

    async def draw() -> str:
        begin()
        await asyncio.sleep(0.2)
        end()
        return "drawn"

    return await runner.step("draw", draw)


@flow
async def once(runner: Runner) -> str:
    """Have an effect at most once, in a thread or on the loop; a file says what came of an attempt that left no outcome."""
    note("enter", runner.run_id)
    sent = mended(f"{runner.run_id}-sent")

    def send() -> str:
        time.sleep(begin())
        sent.touch()
        end()
        return "sent"

    async def send_async() -> str:
        await asyncio.sleep(begin())
        sent.touch()
        end()
        return "sent"

    def look() -> Recovered[str] | None:
        return Recovered("sent") if sent.exists() else None

    if number_of(runner.run_id) % 2:
        return await runner.step(SENT, send, at_most_once=True, recover=look)
    return await runner.step(SENT, send_async, at_most_once=True, recover=look)


@flow
async def crowd(runner: Runner) -> int:
    """Have more effects at once, at most once each, than a process has threads; in half of the runs a step cancels the run."""
    note("enter", runner.run_id)

    async def hang_up() -> None:
        if number_of(runner.run_id) % 2:
            await control.cancel(runner.store, runner.run_id, reason="too many")
            note("cancelled", runner.run_id)

    def call(number: int) -> int:
        begin()
        time.sleep(Random(number).uniform(0.1, 0.2))
        end()
        return number

    def look(step_id: str) -> None:
        note("unknown", runner.run_id, step_id)

    calls = (
        runner.step(f"call-{number}", call, number, at_most_once=True, recover=partial(look, f"call-{number}"))
        for number in range(CALLS)
    )
    # The cancellation may meet an outage of the store, which is no failure of the run.
    _, *called = await asyncio.gather(runner.step(HANG_UP, hang_up, max_attempts=20, retry_delay=0.5), *calls)
    return sum(called)


@flow
async def meddled(runner: Runner) -> str:
    """Have an effect at most once, which somebody wants to resolve or retry while it may be under way."""
    note("enter", runner.run_id)

    async def pay() -> str:
        begin()
        await asyncio.sleep(1)
        end()
        return "paid"

    note("wants", runner.run_id, "pay", kind="meddle")
    return await runner.step("pay", pay, at_most_once=True, recover=lambda: None)


@flow(wait_limit=0)
async def cancelled(runner: Runner) -> None:
    note("enter", runner.run_id)
    try:
        await runner.step("charge", work, "charged")
        await awaited(runner, "never", "cancel", runner.event("never"))
    except RunCancelled:
        await runner.step("refund", work, "refunded", when_cancelled=True)
        raise


@flow
async def fails(runner: Runner) -> str:
    """Fail until somebody mends it, and then retries it, sets its outcome by hand, or goes on with a fork."""
    note("enter", runner.run_id)
    await runner.step("prepare", work, "ready")
    file = mended(runner.run_id.removesuffix("-fork"))

    def broken() -> str:
        if not file.exists():
            raise ValueError("somebody has to mend this")
        time.sleep(begin())
        end()
        return "mended"

    note("wants", runner.run_id, "broken", kind="mend")
    value = await runner.step("broken", broken)
    note("on", runner.run_id, "broken")
    return await runner.step("after", work_async, value)


@flow
async def crashes(runner: Runner) -> None:
    note("enter", runner.run_id)
    await runner.step("prepare", work, "ready")
    raise ZeroDivisionError("a mistake in the flow's own code")


@flow
async def interrupted(runner: Runner) -> None:
    note("enter", runner.run_id)

    def die() -> None:
        begin()
        note("killed", kind="itself")
        os.kill(os.getpid(), signal.SIGKILL)

    await runner.step("die", die, at_most_once=True)


MIX: Final[dict[Flow[..., Any], int]] = {
    steps: 12,
    sleeps: 8,
    asks: 12,
    quorum: 6,
    listens: 10,
    parent: 8,
    flaky: 8,
    books: 8,
    limited: 8,
    once: 4,
    crowd: 2,
    meddled: 2,
    cancelled: 4,
    fails: 4,
    crashes: 2,
    interrupted: 2,
}
"""How many of a hundred runs are of each flow."""


def chosen(runs: int, seed: int, flows: Sequence[str]) -> list[tuple[str, Flow[..., Any]]]:
    """Return the ids and flows of so many runs, in the order in which they are asked for. Without names, of all flows."""
    each = [flow for flow, share in MIX.items() for _ in range(share) if not flows or flow.name in flows]
    order = [each[(number * len(each)) // runs] if runs < len(each) else each[number % len(each)] for number in range(runs)]
    Random(seed).shuffle(order)
    return [(f"{flow.name}-{number:04}", flow) for number, flow in enumerate(order)]


_STEPS: Final = ["a", "b", "c", "d", "e", "f"]


def asked(run_id: str) -> str:
    """Return what a run of `asks` returns, which may be a child."""
    return "rejected by alice" if is_rejected(run_id) else "paid by alice"


def is_rejected(run_id: str) -> bool:
    return number_of(run_id) % 5 == 0


def is_withdrawn(run_id: str) -> bool:
    return number_of(run_id) % 4 == 0


MENDS: Final[Sequence[str]] = ("retry", "resolve", "fork")


def mend_of(run_id: str) -> str:
    return MENDS[number_of(run_id) % len(MENDS)]


def with_forks(run_ids: Iterable[str]) -> set[str]:
    """Add the forks that people make of runs."""
    asked = {*run_ids}
    return asked | {f"{each}-fork" for each in asked if each.startswith(fails.name) and not is_mended(each)}


def is_mended(run_id: str) -> bool:
    """Return True for a run of `fails` that goes on once it is mended; the others are forked instead."""
    return run_id.startswith(fails.name) and (run_id.endswith("-fork") or mend_of(run_id) != "fork")


def expected(run_id: str) -> Collection[tuple[str, Any]]:
    """Return statuses and results; a run has to end with one of them."""
    name = run_id.split("-")[0]
    number = number_of(run_id)
    if name == "fails":
        return [("succeeded", "by hand" if mend_of(run_id) == "resolve" else "mended") if is_mended(run_id) else ("failed", None)]
    if name == "crowd":
        done = ("succeeded", sum(range(CALLS)))  # perhaps before it was cancelled
        return [("cancelled", None), done] if number % 2 else [done]
    if name == "meddled":
        return [("succeeded", "paid"), ("succeeded", "by hand")]
    results: dict[str, tuple[str, Any]] = {
        "steps": ("succeeded", _STEPS),
        "sleeps": ("succeeded", "awake"),
        "asks": ("succeeded", asked(run_id)),
        "quorum": ("succeeded", "approved True"),
        "listens": ("succeeded", "declined" if is_withdrawn(run_id) else f"early-{number} late-{number}"),
        "parent": ("succeeded", [_STEPS, asked(run_id), asked(run_id)]),
        "flaky": ("succeeded", "third"),
        "books": ("succeeded", "booked"),
        "limited": ("succeeded", "drawn"),
        "once": ("succeeded", "sent"),
        "cancelled": ("cancelled", None),
        "crashes": ("parked", None),
        "interrupted": ("parked", None),
    }
    return [results[name]]
