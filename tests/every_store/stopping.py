"""Processes that die, or freeze, between two operations of their store."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from durable_core import Flow, Runner, RunSuspended, StepFailed, StepInterrupted, Store, StoreError, control, flow, open_store
from durable_core._log import wakeups
from durable_core.engine import FLOW, decided
from durable_core.store import wakeups_of
from durable_core.stores import filelock
from durable_worker import Worker
from tests.every_store.forking import CONTEXT

NET: Final = 5.0
"""Seconds; in place of the minute that passes before a run is looked at whose actor died before it could wake a worker."""
_OPERATIONS: Final = (
    *("append", "get", "list", "newer", "set_wakeup", "clear_wakeups"),
    *("lock", "holder", "holders", "flows", "runs", "marks"),
)


@asynccontextmanager
async def unswept(place: str) -> AsyncIterator[Store]:
    """Open a store on which nobody sweeps: runs are found by wake-ups alone, unless it has none."""
    async with open_store(place) as store, AsyncExitStack() as stack:
        if wakeups_of(store) is not None:
            await stack.enter_async_context(store.lock("$sweep"))  # type: ignore[attr-defined]  # every store here has it
        yield store


class StoppingStore(Store):
    """Passes operations on to `store`; before the one with number `at`, counted from 1, this process gets a signal.

    Those are counted that are about a run whose id begins with `run_id`: a worker polls and sweeps besides.
    """

    def __init__(self, store: Store, run_id: str, at: int = 0, number: int = 0) -> None:
        self._store: Final = store
        self._run_id: Final = run_id
        self._at = at
        self._signal: Final = number
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        whole = getattr(self._store, name)
        if name not in _OPERATIONS:
            return whole

        def operation(*arguments: Any, **options: Any) -> Any:
            self._pass_by(arguments)
            return whole(*arguments, **options)

        return operation

    def _pass_by(self, about: object) -> None:
        if self._run_id in repr(about):
            self.count += 1
            if self.count == self._at:
                self._stop()

    def stop_at_last(self) -> None:
        """Stop here, if that was to be after more operations than there were."""
        if self.count < self._at:
            self._stop()

    def _stop(self) -> None:
        self._at = 0  # once
        # A frozen thread would keep a log of the file store locked, which another one reads or writes just now.
        while any(lock.since is None for file in [*filelock._files.values()] for lock in [*file.locks.values()]):
            time.sleep(0.001)
        os.kill(os.getpid(), self._signal)

    async def append(self, record: Any) -> Any:
        self._pass_by(record)
        return await self._store.append(record)

    async def get(self, run_id: str, step_id: str) -> Any:
        self._pass_by(run_id)
        return await self._store.get(run_id, step_id)

    async def list(self, run_id: str) -> Any:
        self._pass_by(run_id)
        return await self._store.list(run_id)

    async def clear(self, run_id: str) -> None:
        await self._store.clear(run_id)


BROKEN: Final[set[str]] = set()
"""Runs whose steps fail, or end their process, until they are taken out."""


class Interruption(BaseException):
    """Ends a process, as far as its run can tell."""


@flow(wait_limit=0)
async def order(runner: Runner, amount: int = 0) -> object:
    """Wait for the payment, and above 0 for a person; below 0, pay it back."""

    def pay_back() -> str:
        if runner.run_id in BROKEN:
            raise ValueError("somebody has to mend this")
        return "paid back"

    try:
        await runner.event("paid", timeout=timedelta(days=2))
    except StepFailed:
        return "nothing was paid"
    if amount < 0:
        return await runner.step("pay-back", pay_back)
    return (await runner.approval("ok", amount)).approved if amount else "free"


@flow(wait_limit=0)
async def charge(runner: Runner) -> str:
    async def at_most_once() -> str:
        if runner.run_id in BROKEN:
            raise Interruption
        return "charged"

    return await runner.step("charge", at_most_once, at_most_once=True)


async def go_as_far_as_it_goes(flow: Flow[Any, Any], store: Store, run_id: str, **input: Any) -> None:
    with suppress(RunSuspended, StepFailed, StepInterrupted, Interruption):
        await flow.run(store, run_id, **input)


async def paid(store: Store, run_id: str) -> None:
    await control.send(store, run_id, "paid", value=True)


async def suspended(store: Store, run_id: str) -> None:
    await go_as_far_as_it_goes(order, store, run_id)


async def asks(store: Store, run_id: str) -> None:
    await paid(store, run_id)
    await go_as_far_as_it_goes(order, store, run_id, amount=1)


async def failed(store: Store, run_id: str) -> None:
    await paid(store, run_id)
    await go_as_far_as_it_goes(order, store, run_id, amount=-1)


async def interrupted(store: Store, run_id: str) -> None:
    for _ in range(2):  # the second one finds out
        await go_as_far_as_it_goes(charge, store, run_id)


class Act(NamedTuple):
    """What somebody does to a run from outside."""

    before: Callable[[Store, str], Awaitable[None]]
    """Brings the run to where it can be done."""
    do: Callable[[Any, str], Awaitable[object]]
    ends: tuple[str, object]
    """The status and the result with which the run ends then."""
    fork: str = ""
    """What is added to the run's id, where it is another one that goes on."""


ACTS: Final[dict[str, Act]] = {
    "start": Act(paid, lambda store, run_id: order.start(store, run_id), ("succeeded", "free")),
    "approve": Act(asks, lambda store, run_id: control.approve(store, run_id, "ok", by="alice"), ("succeeded", True)),
    "reject": Act(asks, lambda store, run_id: control.reject(store, run_id, "ok", by="alice"), ("succeeded", False)),
    "send": Act(suspended, paid, ("succeeded", "free")),
    "send_failure": Act(
        suspended,
        lambda store, run_id: control.send_failure(store, run_id, "paid", error="no"),
        ("succeeded", "nothing was paid"),
    ),
    "resolve": Act(
        failed, lambda store, run_id: control.resolve(store, run_id, "pay-back", "by hand", reason="r"), ("succeeded", "by hand")
    ),
    "retry": Act(failed, lambda store, run_id: control.retry(store, run_id), ("succeeded", "paid back")),
    "retry a step": Act(interrupted, lambda store, run_id: control.retry(store, run_id, "charge"), ("succeeded", "charged")),
    "cancel": Act(suspended, lambda store, run_id: control.cancel(store, run_id), ("cancelled", None)),
    "fork": Act(
        failed,
        lambda store, run_id: control.fork(store, run_id, f"{run_id}-fork", before="pay-back"),
        ("succeeded", "paid back"),
        "-fork",
    ),
}


async def act_until(url: str, name: str, run_id: str, at: int, number: int) -> None:
    """Act on a run; before the operation of the store with number `at` the process gets a signal."""
    wakeups.NET = timedelta(seconds=NET)  # type: ignore[misc]  # a minute is too long for a test
    async with open_store(url) as store:
        stopping = StoppingStore(store, run_id, at, number)
        await ACTS[name].do(stopping, run_id)
        stopping.stop_at_last()


# --- A worker's own pass -------------------------------------------------------------------------------------------------------


@flow(wait_limit=0)
async def family(runner: Runner, child: str) -> object:
    """Ask for a child, and wait for its end."""
    return await runner.result("got", await runner.flow("child", passing.named(child), wait=False))


@flow(wait_limit=0)
async def passing(runner: Runner) -> object:
    """Suspend for a while and for an event, and end."""
    one = await runner.step("one", lambda: "one")
    await runner.sleep("nap", 0.5)
    return [one, await runner.event("packed")]


async def settled(store: Store, stopping: StoppingStore, run_id: str) -> None:
    """Wait until a run has ended, or nothing was done for a second while it waits for the event."""
    flow, counted, since = None, 0, time.monotonic()
    while not decided(flow):
        with suppress(StoreError):  # no answer in time, where the process was frozen
            flow = await store.get(run_id, FLOW)
        if stopping.count > counted or flow is None or [run_id, "packed"] not in flow.notes.get("waiting_for", []):
            counted, since = stopping.count, time.monotonic()
        elif time.monotonic() > since + 1:
            break
        await asyncio.sleep(0.05)


async def work_until(url: str, name: str, at: int, number: int, visibility_timeout: float) -> None:
    """Drive a run until it has ended; before the operation with number `at` the process gets a signal."""
    parent = name.replace("passing", "family")
    async with open_store(url) as store:
        stopping = StoppingStore(store, parent, at, number)
        async with Worker(stopping, [passing.named(name)], poll=0.1, visibility_timeout=visibility_timeout):
            await settled(store, stopping, f"{parent}/child")
            stopping.stop_at_last()
            flow = None
            while not decided(flow):
                await asyncio.sleep(0.05)
                with suppress(StoreError):
                    flow = await store.get(f"{parent}/child", FLOW)


# --- Workers -------------------------------------------------------------------------------------------------------------------


@flow
async def gated(runner: Runner, ledger: str, gate: str, stop_at: str = "") -> None:
    """Two steps that write to a ledger when they begin and when they end; each waits for a file to be there."""

    def happen(name: str) -> None:
        file = Path(f"{gate}-{name}" if name == stop_at else gate)
        write(ledger, f"{name} begins")
        while not file.exists():
            time.sleep(0.01)
        write(ledger, name)

    await runner.step("one", happen, "one")
    await runner.step("two", happen, "two")


@flow
async def deadly(runner: Runner, ledger: str) -> None:
    """End the process, each time."""

    def die() -> None:
        write(ledger, "deadly")
        os.kill(os.getpid(), signal.SIGKILL)

    await runner.step("die", die)


def write(ledger: str, line: str) -> None:
    with Path(ledger).open("a") as file:
        file.write(f"{line}\n")


async def serve(url: str, names: Sequence[str], visibility_timeout: float) -> None:
    """Be a worker that has some of the flows above, until SIGTERM."""
    flows = [each for each in (gated, deadly) if each.name in names]
    async with open_store(url) as store:
        await Worker(store, flows, poll=0.1, visibility_timeout=visibility_timeout, max_crashes=3, shutdown_timeout=20).serve()


def start(program: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> Any:
    """Run one of these programs in a process of its own."""
    process = CONTEXT.Process(target=_run, args=(program, *arguments), daemon=True)
    process.start()
    return process


def _run(program: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    asyncio.run(program(*arguments))
