"""Runs that live longer than a process, on every store that outlives one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_core import MemoryStore, RunCancelled, Runner, RunSuspended, StepFailed, StepInterrupted, control, open_store
from durable_core.testing import FakeClock
from tests.every_store.forking import CONTEXT
from tests.every_store.programs import charge, decide, deliver, deliver_until, give_back, give_back_until, race, refund_once, run

SECONDS = 120


class Process:
    """A program that runs in a process of its own."""

    def __init__(self, program: Callable[..., Any], url: str, *arguments: object) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=run, args=(theirs, program, url, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: str) -> None:
        self._pipe.send(message)

    def receive(self) -> Any:
        """Return the next message; None if the process was killed."""
        assert self._pipe.poll(SECONDS)
        try:
            return self._pipe.recv()
        except EOFError:
            return None

    def ends(self) -> tuple[int, Any]:
        """Return the exit code of the process, and what the program returned."""
        answer = self.receive()
        self._process.join(SECONDS)
        code: int = self._process.exitcode
        self._process.close()
        self._pipe.close()
        return code, answer


async def test_a_refund_over_three_processes_is_paid_once(url: str, tmp_path: Path) -> None:
    """The first asks and exits, a person approves from the second, the third pays; a fourth finds it done."""
    ledger = tmp_path / "ledger"
    for _ in range(2):
        assert Process(refund_once, url, str(ledger)).ends() == (0, "suspended for approve-refund")
    async with open_store(url) as store:
        (waiting,) = [record async for record in control.pending(store)]
        assert waiting.note["show"] == {"amount": 90}
        assert (await control.status(store, "refund-7")).status == "waiting"
        await control.approve(store, waiting.run_id, waiting.step_id, by="alice", reason="checked the invoice")
        assert [record async for record in control.pending(store)] == []
    for _ in range(2):
        assert Process(refund_once, url, str(ledger)).ends() == (0, "approved by alice")
    assert len(ledger.read_text().splitlines()) == 1
    async with open_store(url) as store:
        assert (await control.status(store, "refund-7")).status == "succeeded"


async def test_eight_people_decide_at_once_and_one_decision_counts(url: str, tmp_path: Path) -> None:
    """Four approve and four reject at the same moment: one decides, seven are told who was first."""
    assert Process(refund_once, url, str(tmp_path / "ledger")).ends() == (0, "suspended for approve-refund")
    people = [Process(decide, url, "yes" if number % 2 else "no", f"person-{number}") for number in range(8)]
    for process in people:
        assert process.receive() == "ready"
    for process in people:
        process.send("go")
    answers = [process.ends()[1] for process in people]
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

    def of(point: str) -> tuple[str, str]:
        return f"order-{point}", str(tmp_path / f"ledger-{point}")

    async def resume(point: str) -> None:
        try:
            answer = await charge(store, *of(point), "never", recover)
        except StepInterrupted:
            answer = "interrupted"
        ledger = Path(of(point)[1])
        charged = ledger.read_text().count("charged") if ledger.exists() else 0
        assert charged <= 1, point
        if recover == "recover" or answer != "interrupted":
            assert (charged, answer) == (1, "charged"), point
        else:
            assert point in ("after:2", "begin", "end", "before:3")

    # Each point has a run of its own, so that the leases of those that were killed run out at the same time.
    processes = {point: Process(charge, url, *of(point), point, recover) for point in POINTS}
    for point, process in processes.items():
        assert process.ends() == (-9, None), point
    async with open_store(url) as store, asyncio.TaskGroup() as tasks:
        for point in POINTS:
            tasks.create_task(resume(point))


@pytest.mark.parametrize("url", ["file", "sqlite", "postgres", "redis"], indirect=True)
async def test_two_processes_at_one_run_that_are_killed_both(url: str, tmp_path: Path) -> None:
    """One takes over from the other, and a third from it: an effect happens again only where a kill came before its entry."""
    url = url.replace("lease=10", "lease=1")
    # The appends: the flow, pack, load, the intent to ship, its outcome, the flow; who takes over begins with the flow.
    points = [(first, second, when) for first, second in ((2, 3), (3, 3), (5, 2)) for when in ("before", "after")]
    rivals = []
    for first, second, when in points:
        run_id = f"{first}-{second}-{when}"
        rivals += [Process(deliver_until, url, run_id, str(tmp_path / run_id), at, when) for at in (first, second)]
    for process in rivals:
        assert process.receive() == "ready"
    for process in rivals:
        process.send("go")
    assert [process.ends() for process in rivals] == [(-9, None)] * len(rivals)

    async def finish(run_id: str, when: str) -> None:
        assert await deliver.run(store, run_id=run_id, ledger=str(tmp_path / run_id)) == "ship"
        happened = (tmp_path / run_id).read_text().split()
        assert happened.count("ship") == 1, run_id
        assert set(happened) == {"pack", "load", "ship"}, run_id
        assert len(happened) <= 3 + (2 if when == "before" else 0), (run_id, happened)
        log = await store.list(run_id)
        assert [record.status for record in log if record.step_id in ("pack", "load")] == ["success"] * 2, run_id

    async with open_store(url) as store, asyncio.TaskGroup() as tasks:
        for first, second, when in points:
            tasks.create_task(finish(f"{first}-{second}-{when}", when))


@pytest.mark.parametrize("url", ["file", "sqlite", "postgres", "redis"], indirect=True)
async def test_a_process_killed_around_a_refund(url: str, tmp_path: Path) -> None:
    """The entries are those of a cancelled run that was begun once more, and it is refunded again only before its entry."""
    url = url.replace("lease=10", "lease=1")
    # The appends: the flow, the charge, the cancellation, the refund, the end.
    points = [(at, when) for at in (4, 5) for when in ("before", "after")]
    processes = [Process(give_back_until, url, f"{at}-{when}", str(tmp_path / f"{at}-{when}"), at, when) for at, when in points]
    assert [process.ends() for process in processes] == [(-9, None)] * len(points)

    async def finish(at: int, when: str) -> None:
        run_id = f"{at}-{when}"
        with pytest.raises(StepFailed) as failed:
            await give_back.run(store, run_id=run_id, ledger=str(tmp_path / run_id))
        assert failed.value.error.matches(RunCancelled)
        assert (tmp_path / run_id).read_text().split() == ["charge"] + ["refund"] * (2 if run_id == "4-before" else 1)
        entries = [(record.step_id, record.status) for record in await store.list(run_id)]
        begun_again = [] if run_id == "5-after" else [("$flow", "started")]
        refund = [*begun_again, ("refund", "success")] if run_id == "4-before" else [("refund", "success"), *begun_again]
        flow = [("$flow", "started"), ("charge", "success"), ("$flow", "reopened")]
        assert entries == [*flow, *refund, ("$flow", "failure")]

    async with open_store(url) as store, asyncio.TaskGroup() as tasks:
        for at, when in points:
            tasks.create_task(finish(at, when))


async def test_eight_processes_racing_on_one_run_get_one_outcome_a_step(url: str) -> None:
    """Without the lock each may run a step; each step has one entry, and everybody got the value that it holds."""
    alone, together = 10, 20
    rivals = [Process(race, url, alone, together) for _ in range(8)]
    for process in rivals:
        assert process.receive() == "ready"
    for process in rivals:
        process.send("go")
    outcomes = [process.ends() for process in rivals]
    async with open_store(url) as store:
        log = await store.list("race")
    names = [*(f"alone-{number}" for number in range(alone)), *(f"together-{number}" for number in range(together))]
    assert [record.step_id for record in log][:alone] == names[:alone]
    assert sorted(record.step_id for record in log) == sorted(names)
    recorded = {record.step_id: record.value() for record in log}
    assert outcomes == [(0, [recorded[name] for name in names])] * 8


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
