"""Recorded runs, replayed with today's code from every store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from durable_core import Flow, Runner, RunSuspended, StepFailed, StepRecord, Store, control, flow, open_store
from durable_core.testing import replay_check

called: list[str] = []


def work(name: str) -> str:
    called.append(name)
    return name


def broken(name: str) -> str:
    called.append(name)
    raise ConnectionError(f"{name} is closed")


@flow
async def check(runner: Runner) -> str:
    return await runner.step("look", work, "look")


@flow(wait_limit=0)
async def refund(runner: Runner, amount: int) -> str:
    await runner.step("note", work, f"note {amount}")
    await runner.map("mail", work, ["ann", "bob"])
    await runner.flow("check", check)
    decision = await runner.approval("ok", {"amount": amount})
    await runner.publish("progress", amount)
    with suppress(StepFailed):
        await runner.step("bank", broken, "bank")
    return f"{await runner.step('pay', work, 'pay')} by {decision.by}"


@flow(name="refund", wait_limit=0)
async def other(runner: Runner, amount: int) -> str:
    """Sends no mails any more, and calls a step with another argument."""
    await runner.step("note", work, f"note of {amount}")
    await runner.flow("check", check)
    decision = await runner.approval("ok", {"amount": amount})
    with suppress(StepFailed):
        await runner.step("bank", broken, "bank")
    return f"{await runner.step('pay', work, 'pay')} by {decision.by}"


async def replayed(flow: Flow[..., object], store: Store) -> dict[str, set[tuple[str, str | None]]]:
    """Return the differences of each run; see that nothing was called and nothing was written."""
    before = await logs(store)
    called.clear()
    report = await replay_check(flow, store)
    assert called == []
    assert await logs(store) == before
    return {run.run_id: {(each.what, each.step_id) for each in run.differences} for run in report.runs}


async def logs(store: Store) -> dict[str, Sequence[StepRecord]]:
    return {run.run_id: await store.list(run.run_id) async for run in control.runs(store)}


async def test_runs_are_replayed_from_every_store(url: str) -> None:
    """Ended, waiting and asked for: the code that recorded them fits, other code does not; read by a store of its own."""
    async with open_store(url) as store:
        for run_id in ("ended", "waits"):
            with suppress(RunSuspended):
                await refund.run(store, run_id, amount=90)
        await control.approve(store, "ended", "ok", by="ann")
        assert await refund.run(store, "ended") == "pay by ann"
        await refund.start(store, "asked", amount=7)
    async with open_store(url) as store:
        assert await replayed(refund, store) == {"asked": set(), "waits": set(), "ended": set()}
        wrong = {("arguments", "note"), ("unasked", "mail"), ("unasked", "mail/0"), ("unasked", "mail/1")}
        ended = wrong | {("unasked", "progress")}
        assert await replayed(other, store) == {"asked": set(), "waits": wrong, "ended": ended}
