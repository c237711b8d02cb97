"""A run whose log is damaged keeps no other run from going on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from durable_core import CorruptLog, Runner, RunSuspended, StepEvent, control, flow
from durable_core.record import StepRecord
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_file import FileStore
from durable_worker import Worker


@flow
async def greet(runner: Runner, name: str) -> str:
    return await runner.step("greet", lambda: f"hello {name}")


@flow
async def ask(runner: Runner) -> bool:
    return (await runner.approval("ok", {"amount": 90})).approved


async def test_a_damaged_log_in_a_folder_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The sweep of a folder passes it over, says so once, and tells `on_event`; the others end."""
    told: list[StepEvent] = []
    async with FileStore(tmp_path) as store:
        for number in range(6):
            await greet.start(store, run_id=f"run-{number}", name="Ada")
    damaged = tmp_path / "run-3.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"Ada", b"Eve"))
    async with FileStore(tmp_path) as store:
        worker = Worker(store, [greet], on_event=lambda event: told.append(event) if event.run_id == "run-3" else None)
        reports = [await worker.sweep() for _ in range(3)]
        assert [report.succeeded for report in reports] == [5, 0, 0]
        assert [(event.type, type(event.error)) for event in told] == [("run:crash", CorruptLog)]
        assert caplog.text.count("run-3.jsonl") == 1


@flow
async def greet_all(runner: Runner) -> None:
    await runner.flow("child", ask)


async def test_a_damaged_parent_hides_no_other_run(tmp_path: Path) -> None:
    """Also where its child asks who drives it."""
    async with FileStore(tmp_path) as store:
        with pytest.raises(RunSuspended):
            await greet_all.options(wait_limit=0).run(store, "parent")
        await greet.start(store, "one", name="Ada")
    damaged = tmp_path / "parent.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b"greet_all", b"greet_few"))
    async with FileStore(tmp_path) as store:
        assert (await Worker(store, [greet_all, ask, greet]).sweep()).succeeded == 1


class DamagedStore(MemoryStore):
    """Can't read one decision, and so no request in which that is asked for."""

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        if ("bad", "ok", -1) in known:
            raise CorruptLog("the decision of run 'bad' is damaged")
        return await super().newer(known)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        if (run_id, step_id) == ("bad", "ok"):
            raise CorruptLog("the decision of run 'bad' is damaged")
        return await super().get(run_id, step_id)


async def test_a_damaged_decision_hides_no_other_run(clock: FakeClock) -> None:
    """The sweep asks for what many runs wait for in one request; where that can't be read it asks for each run's."""
    store, told = DamagedStore(clock=clock), list[StepEvent]()
    names = ["one", "bad", "two"]
    worker = Worker(store, [ask], clock=clock, on_event=lambda event: told.append(event) if event.type == "run:crash" else None)
    for name in names:
        await ask.options(clock=clock).start(store, name)
    await worker.sweep()
    for name in ("one", "two"):
        await control.approve(store, name, "ok", by="alice", clock=clock)
    hints = await store.take_wakeups(["ask"], limit=100, visibility_timeout=timedelta(minutes=1))
    await store.clear_wakeups(hints)
    assert (await worker.sweep()).succeeded == 2
    assert [event.run_id for event in told] == ["bad"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
