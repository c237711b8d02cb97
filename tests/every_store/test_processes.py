"""Runs that live longer than a process, on every store that outlives one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from durable_core import MemoryStore, Runner, RunSuspended, StepInterrupted, control, open_store
from durable_core.testing import FakeClock
from tests.every_store.programs import charge

PROGRAMS = str(Path(__file__).with_name("programs.py"))


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, PROGRAMS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ends(*arguments: str) -> tuple[int, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, -9), err
    return process.returncode, out.strip()


async def test_a_refund_over_three_processes_is_paid_once(url: str, tmp_path: Path) -> None:
    """The first asks and exits, a person approves from the second, the third pays; a fourth finds it done."""
    ledger = tmp_path / "ledger"
    assert ends("refund_once", url, str(ledger)) == (0, "suspended for approve-refund")
    assert ends("refund_once", url, str(ledger)) == (0, "suspended for approve-refund")
    async with open_store(url) as store:
        (waiting,) = [record async for record in control.pending(store)]
        assert waiting.note["show"] == {"amount": 90}
        assert (await control.status(store, "refund-7")).status == "waiting"
        await control.approve(store, waiting.run_id, waiting.step_id, by="alice", reason="checked the invoice")
        assert [record async for record in control.pending(store)] == []
    for _ in range(2):
        assert ends("refund_once", url, str(ledger)) == (0, "approved by alice")
    assert len(ledger.read_text().splitlines()) == 1
    async with open_store(url) as store:
        assert (await control.status(store, "refund-7")).status == "ended"


async def test_eight_people_decide_at_once_and_one_decision_counts(url: str, tmp_path: Path) -> None:
    """Four approve and four reject at the same moment: one decides, seven are told who was first."""
    assert ends("refund_once", url, str(tmp_path / "ledger"))[1].startswith("suspended")
    people = [start("decide", url, "yes" if number % 2 else "no", f"person-{number}") for number in range(8)]
    for process in people:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in people:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0].strip() for process in people]
    assert sorted(answer.split()[0] for answer in answers) == ["already"] * 7 + ["decided"]
    async with open_store(url) as store:
        chain = [record for record in await store.list("refund-7") if record.step_id == "approve-refund"]
    assert [record.status for record in chain] == ["waiting", "success"]
    winner = chain[-1].note["votes"][0]["by"]
    assert answers[int(winner.removeprefix("person-"))] == "decided"
    assert all(winner in answer for answer in answers if answer != "decided")


# The appends of the run: prepare, the intent, the outcome; and the two places around the effect.
POINTS = ["before:1", "after:1", "before:2", "after:2", "begin", "end", "before:3", "after:3"]


@pytest.mark.parametrize("recover", ["alone", "recover"])
async def test_killed_at_every_point_around_a_step_that_may_happen_once(url: str, tmp_path: Path, recover: str) -> None:
    """The effect is there at most once, always; with `recover` exactly once, and the run ends."""

    async def killed_at(point: str) -> None:
        ledger = tmp_path / f"ledger-{point}"
        arguments = f"order-{point}", str(ledger)
        assert await asyncio.to_thread(ends, "charge", url, *arguments, point, recover) == (-9, ""), point
        try:
            answer = await charge(store, *arguments, "never", recover)
        except StepInterrupted:
            answer = "interrupted"
        charged = ledger.read_text().count("charged") if ledger.exists() else 0
        assert charged <= 1, point
        if recover == "recover" or answer != "interrupted":
            assert (charged, answer) == (1, "charged"), point
        else:
            assert point in ("after:2", "begin", "end", "before:3")

    # Each point has a run of its own, so that the leases of those that were killed run out at the same time.
    async with open_store(url) as store, asyncio.TaskGroup() as tasks:
        for point in POINTS:
            tasks.create_task(killed_at(point))


def test_eight_processes_racing_on_one_run_get_one_outcome_a_step(url: str) -> None:
    """Without the lock each may run a step; all return the one that was recorded."""
    rivals = [start("number", url, "10") for _ in range(8)]
    answers = {process.communicate(timeout=120)[0].strip() for process in rivals}
    assert len(answers) == 1
    assert len(answers.pop().split(",")) == 10


async def test_deadline_and_decision_at_the_same_moment_have_one_outcome(tmp_path: Path) -> None:
    """Whoever appends first: the other sees that outcome."""
    outcomes = set()
    for early in (True, False):
        store, clock = MemoryStore(), FakeClock()
        with pytest.raises(RunSuspended):
            await Runner(store, "run", wait_limit=0, clock=clock).approval("ask", timeout=60)
        person, runner = FakeClock(clock.now()), FakeClock(clock.now())
        person.advance(59)
        runner.advance(60)
        try:
            if early:
                await control.approve(store, "run", "ask", by="alice", clock=person)
            await Runner(store, "run", clock=runner).approval("ask", timeout=60)
        except Exception as error:
            outcomes.add(type(error).__name__)
        try:
            await control.approve(store, "run", "ask", by="alice", clock=person)
            outcomes.add("approved")
        except Exception as error:
            outcomes.add(type(error).__name__)
        assert next(record.status for record in await store.list("run")) == "waiting"
        assert len(await store.list("run")) == 2
    assert outcomes == {"approved", "StepFailed", "DeadlinePassed"}


async def test_a_run_moves_between_any_two_stores(opened: object, tmp_path: Path) -> None:
    """Copied entry for entry, a run reads back the same and goes on where it was."""
    async with open_store(f"file:{tmp_path / 'laptop'}") as laptop:
        runner = Runner(laptop, "refund-7", wait_limit=0)
        await runner.step("prepare", lambda: {"text": "\0 \u2028 ü", "number": 10**17}, returns=dict)
        with pytest.raises(RunSuspended):
            await runner.approval("ask", {"amount": 90})
        async with opened() as elsewhere:  # type: ignore[operator]
            assert await control.copy(laptop, "refund-7", elsewhere) == 2
            assert list(await elsewhere.list("refund-7")) == list(await laptop.list("refund-7"))
            await control.approve(elsewhere, "refund-7", "ask", by="alice")
            decision = await Runner(elsewhere, "refund-7").approval("ask", {"amount": 90})
            assert decision.approved
            back = MemoryStore()
            assert await control.copy(elsewhere, "refund-7", back) == 3
            assert list(await back.list("refund-7")) == list(await elsewhere.list("refund-7"))
