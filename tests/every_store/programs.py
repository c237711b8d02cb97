"""Programs that the tests run in processes of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from durable_core import (
    AlreadyDecided,
    Recovered,
    RunCancelled,
    Runner,
    RunSuspended,
    StepFailed,
    Store,
    control,
    current_step,
    flow,
    open_store,
)
from durable_core.testing import CrashingStore


@flow(wait_limit=0)
async def refund(runner: Runner, *, amount: int, ledger: str) -> str:
    """Ask a person, then pay; the ledger counts the payments."""
    decision = await runner.approval("approve-refund", {"amount": amount})
    if not decision.approved:
        return f"rejected by {decision.by}"
    await runner.step("pay", pay, ledger, amount)
    return f"approved by {decision.by}"


def pay(ledger: str, amount: int) -> None:
    with Path(ledger).open("a") as file:
        file.write(f"{current_step().idempotency_key} {amount}\n")


async def refund_once(store: Store, ledger: str) -> str:
    try:
        return await refund.run(store, run_id="refund-7", amount=90, ledger=ledger)
    except RunSuspended as suspended:
        return f"suspended for {', '.join(suspended.waiting_for)}"


async def decide(store: Store, pipe: Connection, yes_or_no: str, name: str) -> str:
    """Decide as `name` once all rivals are ready, and all of them are told to go."""
    await store.get("refund-7", "approve-refund")
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    act = control.approve if yes_or_no == "yes" else control.reject
    try:
        await act(store, "refund-7", "approve-refund", by=name)
    except AlreadyDecided as decided:
        return f"already {decided}"
    return "decided"


async def charge(store: Store, run_id: str, ledger: str, point: str, recover: str) -> str:
    """Charge once; killed at `point`, which is an append, before or after it, or a place in the function."""

    async def charge_card() -> str:
        if point == "begin":
            os.kill(os.getpid(), 9)
        with Path(ledger).open("a") as file:
            file.write("charged\n")
        if point == "end":
            os.kill(os.getpid(), 9)
        return "charged"

    async def look() -> Recovered[str] | None:
        there = Path(ledger).exists() and Path(ledger).read_text().count("charged")
        return Recovered("charged") if there else None

    if ":" in point:
        when, at = point.split(":")
        store = CrashingStore(store, at=int(at), when="before" if when == "before" else "after", how="kill")
    async with Runner(store, run_id, lock_wait=30) as runner:
        await runner.step("prepare", lambda: "prepared", returns=str)
        options = {"recover": look} if recover == "recover" else {}
        return await runner.step("charge", charge_card, at_most_once=True, **options)  # type: ignore[arg-type]


@flow(lock_wait=60)
async def give_back(runner: Runner, *, ledger: str) -> None:
    """Charge, be cancelled, and give back."""

    def happen(name: str) -> None:
        with Path(ledger).open("a") as file:
            file.write(f"{name}\n")

    try:
        await runner.step("charge", happen, "charge")
        await control.cancel(runner.store, runner.run_id)
        await runner.step("ship", happen, "ship")
    except RunCancelled:
        await runner.step("refund", happen, "refund", when_cancelled=True)
        raise


async def give_back_until(store: Store, run_id: str, ledger: str, at: int, when: Literal["before", "after"]) -> None:
    """Give back; killed before or after the append with number `at`."""
    await give_back.run(CrashingStore(store, at, when=when, how="kill"), run_id=run_id, ledger=ledger)


@flow(lock_wait=60)
async def deliver(runner: Runner, *, ledger: str) -> str:
    """Pack, load, and ship once; the ledger holds what really happened."""

    def happen(name: str) -> str:
        with Path(ledger).open("a") as file:
            file.write(f"{name}\n")
        return name

    async def look() -> Recovered[str] | None:
        return Recovered("ship") if "ship" in Path(ledger).read_text().split() else None

    for name in ("pack", "load"):
        await runner.step(name, happen, name)
    return await runner.step("ship", happen, "ship", at_most_once=True, recover=look)


async def deliver_until(
    store: Store, pipe: Connection, run_id: str, ledger: str, at: int, when: Literal["before", "after"]
) -> str:
    """Deliver once all rivals are ready; killed before or after the append with number `at`."""
    await store.list(run_id)
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    return await deliver.run(CrashingStore(store, at, when=when, how="kill"), run_id=run_id, ledger=ledger)


async def race(store: Store, pipe: Connection, alone: int, together: int) -> list[str]:
    """Run steps without the run's lock once all rivals are ready, some one by one and some at once; return their values."""
    runner = Runner(store, "race")
    await runner.history()
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    values = [await runner.step(f"alone-{number}", random_value) for number in range(alone)]
    return [*values, *await asyncio.gather(*(runner.step(f"together-{number}", random_value) for number in range(together)))]


async def random_value() -> str:
    await asyncio.sleep(0)
    return uuid4().hex


def run(pipe: Connection, program: Callable[..., Any], url: str, *arguments: Any) -> None:
    """Run one of the programs above on the store at `url`; send what it returned."""

    async def main() -> Any:
        async with open_store(url) as store:
            try:
                return await program(store, *([pipe] if program in (decide, race, deliver_until) else []), *arguments)
            except StepFailed as failed:
                return f"failed: {failed}"

    pipe.send(asyncio.run(main()))
