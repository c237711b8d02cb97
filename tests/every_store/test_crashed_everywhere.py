"""One flow, whose process is killed at every point of the way, on every store that outlives a process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from durable_core import Runner, Store, control, flow
from durable_core.record import StepRecord
from durable_core.testing import crash_everywhere


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_refund_crashed_everywhere(url: str, tmp_path: Path) -> None:
    """A step, an approval and a child come out as undisturbed wherever the process dies, around locks and wake-ups too."""

    def happen(place: str, effect: str) -> str:
        with (tmp_path / place).open("a", encoding="utf-8") as ledger:
            ledger.write(f"{effect}\n")
        return effect

    def happened(run_id: str) -> Sequence[str]:
        return (tmp_path / run_id).read_text(encoding="utf-8").split()

    @flow
    async def pay(runner: Runner, place: str) -> str:
        return await runner.step("debit", happen, place, "debit")

    @flow
    async def refund(runner: Runner) -> str:
        await runner.step("check", happen, runner.run_id, "check")
        decision = await runner.approval("approve", {"amount": 90})
        return f"{await runner.flow('pay', pay, place=runner.run_id)} by {decision.by}"

    async def approve(store: Store, wait: StepRecord) -> None:
        await control.approve(store, wait.run_id, wait.step_id, by="ann")

    # A machine that is busy may not renew a short lease in time; that of a process that is gone is taken over at once.
    url = url.replace("lease=10", "lease=60")
    report = crash_everywhere(refund, open_store=url, decide=approve, effects=happened)
    assert report.kills == len(report.points) - 2
    places = {point.place for point in report.points}
    assert {"after the lock is taken, in visit 2", "as 'debit' of child 'pay' begins, in visit 2"} <= places
