"""Runs of every kind, as a shop may have them: what the views are looked at with."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from durable_core import Runner, RunSuspended, StepFailed, StepRecord, Store, control, flow

ASKED = ["alice", "bob", "carol"]
HOSTILE = "</script><img src=x onerror=alert(1)>\u202egnp.\u200b"


async def unreachable() -> None:
    raise ConnectionError("the bank is closed: no answer from 10.0.0.7:443 within 30 s")


@flow(wait_limit=0)
async def refund(runner: Runner, order: str, amount: int, quorum: int = 1, approvers: list[str] | None = None) -> str:
    """Look an order up, ask people, and pay back."""
    await runner.step("look-up", lambda: {"order": order, "customer": "Mia Chen", "paid": amount}, returns=dict[str, Any])
    shown = {
        "order": order,
        "customer": {"name": "Mia Chen", "since": "2021-04-02", "orders": 42},
        "items": [{"sku": "LAMP-7", "price": amount - 15, "currency": "EUR"}, {"sku": "BULB-2", "price": 15, "currency": "EUR"}],
        "message": "The lamp arrived broken.\nI would like my money back, please.\n\n" + "It flickers when it is warm. " * 20,
        "edit": {"amount": amount},
    }
    decision = await runner.approval("approve-refund", shown, timeout=timedelta(hours=47), quorum=quorum, approvers=approvers)
    return f"paid back by {decision.by}" if decision else "kept"


@flow(wait_limit=0)
async def settle(runner: Runner, day: str) -> None:
    """Settle a day: fails, since the bank is closed."""
    await runner.step("read-orders", lambda: list(range(12)), returns=list[int])
    await runner.step("pay", unreachable, max_attempts=2, retry_delay=0.05)


@flow(wait_limit=0)
async def parcel(runner: Runner, order: str) -> Any:
    """Pack, and wait for the carrier."""
    await runner.flow("label", label, order=order)
    await runner.publish("progress", {"packed": 3, "of": 4})
    return await runner.event("picked-up", returns=Any, timeout=timedelta(days=2))


@flow
async def label(runner: Runner, order: str) -> str:
    """Print a label."""
    return await runner.step("print", lambda: f"label of {order}", returns=str)


@flow(wait_limit=0)
async def hostile(runner: Runner, text: str) -> None:
    """Write hostile text wherever a flow may write one."""

    def fail() -> None:
        raise ValueError(text)

    with suppress(StepFailed):
        await runner.step(f"step {HOSTILE.strip()}", fail, name=text)
    await runner.step("value", lambda: {text: [text]}, returns=dict[str, list[str]])
    await runner.publish("progress", text)
    await runner.approval("ask", {text: text, "edit": text}, approvers=["alice", text])


@flow
async def working(runner: Runner, until: int = 3) -> str:
    """Be at work until somebody sends `go`."""
    for number in range(until):
        await runner.step(f"part-{number}", lambda number=number: number, returns=int)  # type: ignore[misc]  # number is bound
    return await runner.event("go", returns=str)


async def suspended(run: Any) -> None:
    """Let a run go as far as it can."""
    with suppress(RunSuspended, StepFailed):
        await run


async def open_shop(store: Store) -> None:
    """Fill a store with runs of every kind."""
    await suspended(refund.run(store, run_id="refund-1001", order="A-1001", amount=90))
    await suspended(refund.run(store, run_id="refund-1002", order="A-1002", amount=1250, quorum=2, approvers=ASKED))
    await control.approve(store, "refund-1002", "approve-refund", by="bob", reason="checked the pictures")
    await suspended(refund.run(store, run_id="refund-1000", order="A-1000", amount=12))
    await control.approve(store, "refund-1000", "approve-refund", by="carol", reason="small amount")
    await suspended(refund.run(store, run_id="refund-1000", order="A-1000", amount=12))
    for day in (28, 29):
        await suspended(settle.run(store, run_id=f"settle-2026-11-{day}", day=f"2026-11-{day}"))
    await control.retry(store, "settle-2026-11-28", by="bob", reason="the bank is open again")
    await suspended(settle.run(store, run_id="settle-2026-11-28", day="2026-11-28"))
    await suspended(parcel.run(store, run_id="parcel-7", order="A-1001"))
    await suspended(hostile.run(store, run_id=f"hostile {HOSTILE}", text=HOSTILE))
    now = datetime.now(UTC)
    await store.append(StepRecord(run_id="tax-2026", step_id="file", status="started"))
    note: dict[str, Any] = {"input": {"year": 2026}}
    for revision, status in enumerate(("started", "waiting")):
        entry: dict[str, Any] = {"name": "tax", "kind": "flow", "revision": revision, "status": status, "note": note}
        await store.append(StepRecord(run_id="tax-2026", step_id="$flow", **entry))
        note = note | {"parked": {"step": "file", "why": "nobody knows whether 'file' ran", "mend": "resolve it, or retry it"}}
    tick = now + timedelta(hours=9)
    cron = [{"expression": "0 9 * * 1-5", "timezone": "Europe/Berlin", "first_seen": now.isoformat(), "next": tick.isoformat()}]
    await store.append(StepRecord(run_id="$cron/settle", step_id="$cron", result=msgspec.json.encode(cron)))


async def begin_working(store: Store, run_id: str = "import-1", **input: Any) -> asyncio.Task[str]:
    """Have a run that is at work, and return its task."""
    task = asyncio.create_task(working.run(store, run_id=run_id, **input))
    while await store.get(run_id, "go") is None:
        await asyncio.sleep(0.01)
    return task
