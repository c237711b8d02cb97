"""Programs that the tests run in processes of their own: `python programs.py COMMAND URL [ARGUMENT…]`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from durable_core import (
    AlreadyDecided,
    Recovered,
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


async def decide(store: Store, yes_or_no: str, name: str) -> str:
    """Decide as `name` once all rivals are ready: they wait for a line on standard input."""
    await store.get("refund-7", "approve-refund")
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
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


async def number(store: Store, count: str) -> str:
    """Run numbered steps that each tell which process ran them."""
    runner = Runner(store, "race")
    return ",".join([str(await runner.step(f"n-{n}", os.getpid)) for n in range(int(count))])


async def main(command: str, url: str, *arguments: str) -> None:
    async with open_store(url) as store:
        try:
            print(await globals()[command](store, *arguments))
        except StepFailed as failed:
            print(f"failed: {failed}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
