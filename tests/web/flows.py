"""Flows for the tests of the page."""

from __future__ import annotations

from typing import Any

from durable_core import Runner, RunSuspended, StepFailed, Store, flow


@flow(wait_limit=0)
async def payout(runner: Runner, amount: int = 90, quorum: int = 1, approvers: list[str] | None = None) -> str:
    """Look something up, ask people, and pay."""
    await runner.step("look-up", lambda: {"account": "DE-1"}, returns=dict[str, str])
    asked = {"amount": amount, "edit": {"amount": amount}}
    decision = await runner.approval("approve", asked, quorum=quorum, approvers=approvers)
    return f"paid by {decision.by}" if decision else "not paid"


@flow
async def broken(runner: Runner) -> None:
    """Fail at a step."""

    def fail() -> None:
        raise ConnectionError("the bank is closed")

    await runner.step("pay-back", fail)


@flow(wait_limit=0)
async def parcel(runner: Runner) -> Any:
    """Wait for an event."""
    return await runner.event("packed", returns=Any)


async def ask(store: Store, run_id: str = "payout-1", **input: Any) -> None:
    """Have a run wait for people."""
    try:
        await payout.run(store, run_id=run_id, **input)
    except RunSuspended:
        return
    raise AssertionError(f"{run_id} waits for nobody")


@flow
async def trip(runner: Runner, forgives: bool = False) -> None:
    """Fail at a step, and undo; or go on."""

    def fail() -> None:
        raise ConnectionError("no car is left")

    try:
        await runner.step("car", fail)
    except StepFailed:
        await runner.step("undo-hotel", lambda: None)
        if not forgives:
            raise


async def fail(store: Store, run_id: str = "broken-1") -> None:
    """Have a run that failed."""
    try:
        await broken.run(store, run_id=run_id)
    except StepFailed:
        return
    raise AssertionError(f"{run_id} has not failed")
