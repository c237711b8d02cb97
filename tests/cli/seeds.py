"""Runs that stand in every way there is, made by small flows."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

from durable_core import Runner, RunSuspended, StepFailed, StepInterrupted, Store, control, flow, open_store
from tests.core.conftest import Killed


def closed() -> str:
    raise ConnectionError("the bank is closed")


def killed() -> str:
    raise Killed


@flow(wait_limit=0)
async def refund(runner: Runner, order: int) -> str:
    """Do what the runs' names say, one for each number."""
    await runner.step("look-up", lambda: {"amount": 90, "order": order}, returns=dict)
    quorum, approvers = (2, ["alice", "bob"]) if order == 7 else (1, None)
    await runner.approval("approve", {"amount": 90}, timeout=timedelta(days=2), quorum=quorum, approvers=approvers)
    if order == 1:
        await runner.step("pay-back", closed, max_attempts=2, retry_delay=0)
    if order == 2:
        raise NameError("no such name")
    if order == 3:
        await runner.sleep("cool-off", timedelta(hours=3))
    if order == 4:
        await runner.event("packed", timeout=timedelta(days=1))
    if order == 5:
        try:
            await runner.step("pay-back", closed)
        except StepFailed:
            await runner.step("apologise", lambda: "sorry", returns=str)
            raise
    if order == 6:
        await runner.step("pay-back", closed, max_attempts=5, retry_delay=3600)
    for done in range(3):
        await runner.publish("progress", {"done": done})
    return await runner.step("pay", lambda: "paid back", returns=str)


@flow(wait_limit=0)
async def order(runner: Runner, number: int) -> str:
    return await runner.flow("refund", refund, order=number)


@flow
async def charge(runner: Runner) -> str:
    return await runner.step("charge", killed, at_most_once=True)


async def go(running: Any) -> None:
    """Run a flow as far as it comes."""
    with suppress(RunSuspended, StepFailed, NameError, StepInterrupted, Killed):
        await running


async def seed(store: Store) -> None:
    """Fill a store, `refund-0` first: succeeded, failed, crashed, asleep, waiting for an event, undone, trying again, voted."""
    for number in range(8):
        run_id = f"refund-{number}"
        await go(refund.run(store, run_id=run_id, order=number))
        await control.approve(store, run_id, "approve", by="alice", reason="checked the invoice")
        await go(refund.run(store, run_id=run_id))
    await go(order.run(store, run_id="order-7", number=7))
    await go(charge.run(store, run_id="charge-1"))
    await go(charge.run(store, run_id="charge-1"))  # parked
    await go(charge.run(store, run_id="charge-2"))  # interrupted
    await refund.start(store, run_id="asked", order=0)
    await refund.start(store, run_id="dropped", order=0)
    await control.cancel(store, "dropped", reason="changed her mind", by="bob")
    await go(refund.run(store, run_id="stopping", order=0))
    await control.cancel(store, "stopping", reason="too late")
    async with Runner(store, "script") as runner:
        await runner.step("first", lambda: 1, returns=int)


STATES = {
    "refund-0": "succeeded",
    "refund-1": "failed",
    "refund-2": "crashed",
    "refund-3": "waiting",
    "refund-4": "waiting",
    "refund-5": "failed",
    "refund-6": "waiting",
    "refund-7": "waiting",
    "order-7": "waiting",
    "order-7/refund": "waiting",
    "charge-1": "parked",
    "charge-2": "interrupted",
    "asked": "waiting",
    "dropped": "cancelled",
    "stopping": "cancelling",
    "script": "open",
}
"""How they stand."""


def filled(url: str) -> str:
    """Fill the store at a URL, and return the URL."""

    async def fill() -> None:
        async with open_store(url) as store:
            await seed(store)

    asyncio.run(fill())
    return url
