"""Flows that the tests of the command run, as `tests.cli.acting:NAME`, and runs of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, TypeVar

import psutil

from durable_core import Runner, RunSuspended, StepFailed, Store, flow, open_store
from durable_worker import Worker
from tests.cli.terminal import Terminal

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
"""Where a command has to start to find this module."""


@flow(wait_limit=0)
async def refund(runner: Runner, order: str, amount: int = 90, people: int = 1) -> str:
    """Ask a person, and pay back."""
    shown = {"order": order, "amount": amount}
    decision = await runner.approval("approve", shown, approvers=["alice", "bob"] if people > 1 else None, quorum=people)
    if not decision:
        return f"rejected by {decision.by}: {decision.reason}"
    return await runner.step("pay", lambda: f"paid {(decision.value or shown)['amount']}")


@flow(wait_limit=0)
async def ship(runner: Runner) -> Any:
    """Wait for an event."""
    return await runner.event("packed", timeout=timedelta(days=1))


@flow
async def pay(runner: Runner, opens: str = "") -> str:
    """Fail until there is a file."""
    await runner.step("look-up", lambda: "found")

    def charge() -> str:
        if not opens or not Path(opens).exists():
            raise ConnectionError("the bank is closed")
        return "charged"

    return await runner.step("charge", charge)


@flow
async def crashes(runner: Runner) -> None:
    """Have a typo of a kind."""
    await runner.step("look-up", lambda: "found")
    _helper()


def _helper() -> None:
    raise TimeoutError("of the program's own")


@flow
async def family(runner: Runner) -> str:
    """Call another flow."""
    return await runner.flow("child", pay, opens=str(ROOT))


@flow
async def stubborn(runner: Runner) -> None:
    """Be at work until somebody stops the process: in code that can't be interrupted, or that can."""
    await runner.step("first", lambda: 1)
    await runner.step("forever", asyncio.Event().wait, returns=bool)


@flow
async def deaf(runner: Runner, seconds: float) -> None:
    """Be in a function that nothing interrupts."""
    await runner.step("first", lambda: 1)
    await runner.step("deaf", threading.Event().wait, seconds, returns=bool)


@flow
async def once(runner: Runner) -> None:
    """Do something that may happen only once."""
    await runner.step("look-up", lambda: None, at_most_once=True)


@flow
async def hostile(runner: Runner, text: str, what: str) -> str:
    """Show a text wherever one can be."""
    if what == "crashes":
        raise ValueError(text)

    def step() -> str:
        if what == "fails":
            raise ValueError(text)
        return text

    return await runner.step(text.replace("\x1b", "").replace("\u2028", ""), step, name=text)


flows: Final = [refund, ship, pay]


async def make_worker(store: Store) -> Worker:
    """Make a worker of two flows on the store of the command."""
    return Worker(store, [refund, pay])


number: Final = 7


def no_worker(store: Store) -> int:
    """Return what is no worker."""
    return number


def on_url(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    """Open a store, and do something with it."""

    async def opened() -> T:
        async with open_store(url) as store:
            return await work(store)

    return asyncio.run(opened())


async def asked(store: Store, run_id: str, people: int = 1, order: str = "7") -> None:
    """Have a run wait for an approval."""
    with suppress(RunSuspended):
        await refund.run(store, run_id, order=order, people=people)


async def failed(store: Store, *run_ids: str, opens: str = "") -> None:
    """Have runs that failed."""
    for run_id in run_ids:
        with suppress(StepFailed):
            await pay.run(store, run_id, opens=opens)


def wait_until_it_reads(seen: Terminal) -> None:
    """Return once a command does nothing but wait for input: Python drops a Ctrl-C that comes just before it begins to."""
    deadline = monotonic() + 60
    while psutil.Process(seen.process.pid).status() != psutil.STATUS_SLEEPING:
        assert monotonic() < deadline
        sleep(0.01)
