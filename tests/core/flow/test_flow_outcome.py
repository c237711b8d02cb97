"""How a flow ends: only what says so is its outcome, and nothing that it swallowed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import re
from decimal import Decimal
from typing import Any

import pytest

from durable_core import (
    LockLost,
    MemoryStore,
    ResultNotRecorded,
    RunCancelled,
    Runner,
    RunSuspended,
    StepDrift,
    StepFailed,
    StepRecord,
    StoreError,
    UnrecordableValue,
    control,
    flow,
)
from durable_core.testing import FakeClock


class FailingStore(MemoryStore):
    """Fails the next `appends` and `gets`."""

    poll_seconds = 2.0
    appends = 0
    gets = 0

    async def append(self, record: StepRecord) -> StepRecord:
        if self.appends:
            self.appends -= 1
            raise OSError("away")
        return await super().append(record)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        if self.gets:
            self.gets -= 1
            raise OSError("away")
        return await super().get(run_id, step_id)


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


async def outcome(store: MemoryStore) -> list[str]:
    return [record.status for record in await store.list("run") if record.step_id == "$flow"]


@pytest.mark.parametrize("then", ["returns", "raises"])
async def test_a_suspension_that_gather_returned_is_no_outcome(store: FailingStore, then: str) -> None:
    """Whatever the flow made of it: it still waits."""

    @flow(wait_limit=0)
    async def pays(runner: Runner) -> str:
        (decision,) = await asyncio.gather(runner.approval("ask"), return_exceptions=True)
        return "paid" if then == "returns" else decision.by  # type: ignore[union-attr]

    with pytest.raises(RunSuspended):
        await pays.run(store, run_id="run")
    assert await outcome(store) == ["started", "waiting"]


async def test_a_failed_step_is_an_outcome_beside_a_suspension(store: FailingStore) -> None:
    """The failure is recorded and will be raised on every run."""

    def fail() -> None:
        raise ValueError

    @flow(wait_limit=0)
    async def pays(runner: Runner) -> None:
        await asyncio.gather(runner.approval("ask"), runner.step("fail", fail))

    with pytest.raises(StepFailed):
        await pays.run(store, run_id="run")
    assert await outcome(store) == ["started", "failure"]


@pytest.mark.parametrize("how", ["group", "swallowed"])
async def test_a_cancellation_ends_the_run_whatever_the_flow_makes_of_it(store: FailingStore, how: str) -> None:
    """In a group of exceptions, and when the flow goes on as if nothing were: `except Exception` does not swallow it."""
    clock = FakeClock()

    async def act() -> None:
        await control.cancel(store, "run", reason="enough")
        clock.advance(2)

    @flow(clock=clock)
    async def pays(runner: Runner) -> None:
        await runner.step("act", act)
        if how == "swallowed":
            with contextlib.suppress(BaseException):
                await runner.step("pay", lambda: 1)
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(runner.step("pay", lambda: 1))

    with pytest.raises(StepFailed, match="run 'run' was cancelled at .*: enough") as failed:
        await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert await outcome(store) == ["started", "reopened", "failure"]


async def test_drift_beside_a_failure_is_no_outcome(store: FailingStore) -> None:
    """Mended code goes on with the run, and what failed beside it may go well then."""

    @flow
    async def pays(runner: Runner) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(runner))
            group.create_task(drift(runner))

    async def fail(runner: Runner) -> None:
        raise ValueError

    async def drift(runner: Runner) -> None:
        raise StepDrift("asked for something else")

    with pytest.raises(ExceptionGroup):
        await pays.run(store, run_id="run")
    assert await outcome(store) == ["started", "waiting"]


async def test_a_lock_that_was_lost_is_no_outcome(store: FailingStore) -> None:
    """A flow that swallows it skipped its steps, and another runner may be at work."""

    class Lost:
        def check(self) -> None:
            raise LockLost("the lease ran out")

    class Losing(MemoryStore):
        @contextlib.asynccontextmanager
        async def lock(self, run_id: str) -> Any:
            yield lease

    lease: Any = contextlib.nullcontext()
    lease.check = lambda: None

    @flow
    async def pays(runner: Runner) -> None:
        lease.check = Lost().check
        with contextlib.suppress(Exception):
            await runner.step("pay", lambda: 1)

    store_ = Losing()
    with pytest.raises(LockLost):
        await pays.run(store_, run_id="run")
    assert await outcome(store_) == ["started"]


@pytest.mark.parametrize("method", ["append", "get"])
async def test_a_store_that_is_away_is_no_outcome(store: FailingStore, method: str) -> None:
    """Once it is back, the flow goes on."""
    clock = FakeClock()

    @flow(clock=clock, store_timeout=0.01)
    async def pays(runner: Runner) -> int:
        clock.advance(2)
        setattr(store, f"{method}s", away)
        return await runner.step("pay", lambda: 1, at_most_once=True)

    away = 1
    with pytest.raises(StoreError, match="OSError: away"):
        await pays.run(store, run_id="run")
    assert await outcome(store) == ["started"]
    away = 0
    assert await pays.run(store, run_id="run") == 1


async def test_a_look_that_failed_once_is_taken_again(store: FailingStore) -> None:
    """A server that restarts ends no flow."""
    clock = FakeClock()

    @flow(clock=clock)
    async def pays(runner: Runner) -> int:
        clock.advance(2)
        store.gets = 3
        return await runner.step("pay", lambda: 1)

    assert await pays.run(store, run_id="run") == 1


async def test_an_outcome_that_was_kept_comes_before_that_of_the_flow(store: FailingStore) -> None:
    """Swallowing `ResultNotRecorded` leaves no hole, not even at the end."""

    def pay() -> int:
        store.appends = 1
        return 1

    @flow(store_timeout=0.01)
    async def pays(runner: Runner) -> None:
        with contextlib.suppress(ResultNotRecorded):
            await runner.step("pay", pay)

    await pays.run(store, run_id="run")
    assert [record.step_id for record in await store.list("run")] == ["$flow", "pay", "$flow"]


async def test_input_may_be_typed(store: FailingStore) -> None:
    """It is shown as JSON, and the flow gets it as it is."""

    @flow
    async def pays(runner: Runner, *, amount: Decimal) -> Decimal:
        return amount * 2

    assert await pays.run(store, run_id="run", amount=Decimal("1.50")) == Decimal("3.00")
    assert (await control.status(store, "run")).input == {"amount": "1.50"}


async def test_a_slip_in_what_is_asked_for_is_no_outcome_of_the_flow() -> None:
    """Something that can't be shown is told, and the mended code goes on with the same run."""
    store = MemoryStore()
    shown: list[object] = [float("nan"), 1.5]

    @flow(wait_limit=0)
    async def ask(runner: Runner) -> None:
        await runner.approval("ask", shown[0])

    with pytest.raises(TypeError, match="nan"):
        await ask.run(store, run_id="run")
    shown.pop(0)
    with pytest.raises(RunSuspended):
        await ask.run(store, run_id="run")


async def test_a_flow_that_returns_what_cant_be_recorded_crashed() -> None:
    """Its steps have happened; the error names the path, and the mended code goes on."""

    @flow
    async def number(runner: Runner) -> float:
        return float("nan")

    store = MemoryStore()
    for _ in range(2):
        with pytest.raises(UnrecordableValue, match="nan"):
            await number.run(store, run_id="run")
    assert await outcome(store) == ["started", "reopened"] * 2


async def test_an_outcome_that_was_kept_comes_before_a_failure_of_the_flow(store: FailingStore) -> None:
    """Also when what fails the flow was recorded before it."""

    def pay() -> int:
        store.appends = 1
        return 1

    @flow(store_timeout=0.01)
    async def pays(runner: Runner) -> None:
        try:
            await runner.step("fail", lambda: 1 / 0)
        finally:
            with contextlib.suppress(ResultNotRecorded):
                await runner.step("pay", pay)

    with pytest.raises(StepFailed, match="ZeroDivisionError"):
        await pays.run(store, run_id="run")
    assert [record.step_id for record in await store.list("run")] == ["$flow", "fail", "pay", "$flow"]


async def test_a_flow_that_begins_in_a_cancelled_run_is_told(store: FailingStore) -> None:
    """It may undo what was done; nothing new is begun."""

    @flow
    async def pays(runner: Runner) -> None:
        await runner.step("a", lambda: 1)
        await runner.step("b", lambda: 1)

    await Runner(store, "run").step("a", lambda: 1)
    await control.cancel(store, "run")
    with pytest.raises(StepFailed) as failed:
        await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert [(record.step_id, record.status) for record in await store.list("run")] == [
        ("a", "success"),
        ("$cancel", "success"),
        ("$flow", "started"),
        ("$flow", "reopened"),
        ("$flow", "started"),
        ("$flow", "failure"),
    ]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_flow_that_ends_second_ends_as_the_first(fails: bool) -> None:
    """Where nothing keeps two runners apart, one outcome is recorded, and it is that of both."""

    class Rival(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            if record.step_id == "$flow" and record.revision == 1:
                fields = {"revision": 1, "kind": "flow", "name": "pays", "result": b'"rival"', "fingerprint": record.fingerprint}
                await super().append(StepRecord(run_id="run", step_id="$flow", **fields))  # type: ignore[arg-type]
            return await super().append(record)

    @flow(fails_on=ValueError)
    async def pays(runner: Runner) -> str:
        if fails:
            raise ValueError
        return "own"

    assert await pays.run(Rival(), run_id="run") == "rival"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_flow_has_not_ended_while_its_steps_run(store: FailingStore, fails: bool) -> None:
    """Or else nobody would run the flow again for the one that was cut off by a crash."""
    left: list[asyncio.Task[int]] = []

    async def mail() -> int:
        for _ in range(20):
            await asyncio.sleep(0)
        return 1

    @flow
    async def pays(runner: Runner) -> None:
        left.append(asyncio.create_task(runner.step("mail", mail)))
        if fails:
            raise ValueError

    with pytest.raises(ValueError) if fails else contextlib.nullcontext():
        await pays.run(store, run_id="run")
    assert [record.step_id for record in await store.list("run")] == ["$flow", "mail", "$flow"]
    assert await left[0] == 1


async def test_a_replayed_failure_says_how_to_go_on(store: FailingStore) -> None:
    """Of a flow that failed because of a step, that is the step."""

    def fail() -> None:
        raise ValueError("no such card")

    @flow(fails_on=ValueError)
    async def pays(runner: Runner, *, itself: bool) -> None:
        if itself:
            fail()
        await runner.step("pay", fail)

    for itself, notes in (
        (False, "retry\\(store, 'False', 'pay'\\)"),
        (True, "retry\\(store, 'True'\\)"),
    ):
        run = str(itself)
        with pytest.raises(StepFailed) as first:
            await pays.run(store, run_id=run, itself=itself)
        assert not hasattr(first.value, "__notes__")
        with pytest.raises(StepFailed) as again:
            await pays.run(store, run_id=run, itself=itself)
        assert again.value == first.value
        (note,) = again.value.__notes__
        assert re.search(f"^recorded at .*; nothing was run again; .*{notes}", note)
    with pytest.raises(StepFailed) as replayed:
        await Runner(store, "False").step("pay", fail)
    assert replayed.value.__notes__[0].endswith("to run it again: durable_core.control.retry(store, 'False', 'pay')")
