"""How often a run crashed without getting on, and what is done then."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest

from durable_core import Runner, RunSuspended, control, flow
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker
from durable_worker._crashes import Crashes, count


class Killed(BaseException):
    """The end of the process: nothing is recorded of it."""


class Life:
    """A run whose flow does, each time that it is driven, what the test says."""

    def __init__(self, store: MemoryStore, clock: FakeClock) -> None:
        self.store, self.clock = store, clock
        self.acts: list[str] = []

        @flow(clock=clock, wait_limit=0)
        async def child(runner: Runner) -> None:
            await self._do(runner)

        @flow(clock=clock, wait_limit=0)
        async def live(runner: Runner) -> None:
            await self._do(runner)
            await runner.flow("kid", child)

        self.flow = live

    async def _do(self, runner: Runner) -> None:
        while self.acts:
            match self.acts.pop(0):
                case "raise":
                    raise ZeroDivisionError
                case "raise otherwise":
                    raise LookupError
                case "die":
                    raise Killed
                case "step":
                    await runner.step(f"step-{self.clock.monotonic()}", _nothing)
                case "wait":
                    await runner.event("go")
                case "child":
                    return

    async def lives(self, *acts: str) -> None:
        """Drive it once."""
        self.acts = [*acts]
        self.clock.advance(1)
        with suppress(Exception, Killed, RunSuspended):  # the log tells how it ended
            await self.flow.run(self.store, "run")

    async def count(self) -> Crashes:
        return await count(self.store, await self.store.list("run"))


async def _nothing() -> None: ...


@pytest.fixture
def life(store: MemoryStore, clock: FakeClock) -> Life:
    return Life(store, clock)


async def test_errors_and_deaths_count(life: Life) -> None:
    """An error of the flow's own code, and a process that left the run as it was."""
    await life.lives("step", "raise")
    await life.lives("die")
    await life.lives("raise")
    await life.lives("die")
    found = await life.count()
    assert (found.errors, found.deaths) == (2, 2)


@pytest.mark.parametrize("act", ["step", "child step"])
async def test_an_outcome_counts_anew(life: Life, act: str) -> None:
    """One of a step of the run, or of a child that it drives."""
    await life.lives("raise")
    await life.lives("die")
    await life.lives(*(["step"] if act == "step" else ["child", "step"]), "die")
    found = await life.count()
    assert (found.errors, found.deaths) == (0, 1)


async def test_what_others_do_is_no_getting_on(life: Life) -> None:
    """An event that is sent, a suspension and a cancellation leave the count as it is."""
    await life.lives("raise")
    await life.lives("die")
    await life.lives("wait")
    await control.send(life.store, "run", "go", 1, clock=life.clock)
    await control.cancel(life.store, "run", clock=life.clock)
    found = await life.count()
    assert (found.errors, found.deaths) == (1, 1)


async def test_a_run_that_is_cancelled_is_driven_once_more(store: MemoryStore, clock: FakeClock) -> None:
    """It crashed too often to be tried again, and may well end by its cancellation; if it crashes again, it is parked."""
    ends = [False]

    @flow(clock=clock)
    async def reads(runner: Runner) -> None:
        if not ends[0]:
            raise ZeroDivisionError
        await runner.step("charge", _nothing)

    for run_id in ("ends", "crashes"):
        for _ in range(5):
            with suppress(ZeroDivisionError):
                await reads.run(store, run_id)
        await control.cancel(store, run_id, clock=clock)
        ends[0] = run_id == "ends"
        worker = Worker(store, [reads], clock=clock)
        await worker.sweep()
        ends[0] = False
    assert (await control.status(store, "ends")).status == "cancelled"
    clock.advance(600)
    await worker.sweep()
    newest = await store.get("crashes", "$flow")
    assert newest is not None
    assert "it crashed 6 times" in newest.notes["parked"]["why"]


async def test_the_log_says_what_came_first_and_no_clock(life: Life) -> None:
    """A worker whose clock is behind counts as well as any."""
    await life.lives("step", "die")
    life.clock.jump(timedelta(minutes=-10))
    await life.lives("die")
    await life.lives("die")
    assert (await life.count()).deaths == 3


async def test_by_hand_it_counts_anew(life: Life) -> None:
    """Whoever retries the run has mended something; twenty alike before that count no more."""
    for _ in range(20):
        await life.lives("step", "raise")
    assert (await life.count()).repeats == 20
    await control.retry(life.store, "run", clock=life.clock)
    assert not (await life.count()).repeats
    await life.lives("raise")
    assert (await life.count()).repeats == 1


async def test_other_errors_are_not_alike(life: Life) -> None:
    """Only one error at one line, in a row, is counted over outcomes."""
    for _ in range(3):
        await life.lives("step", "raise")
    await life.lives("step", "raise otherwise")
    await life.lives("step", "raise")
    assert (await life.count()).repeats == 1


async def test_twenty_alike_park_though_steps_end(store: MemoryStore, clock: FakeClock) -> None:
    """A run that gets on a little and always raises the same is parked; a worker that began later tries it once more."""
    tries = []

    @flow(clock=clock)
    async def loops(runner: Runner) -> None:
        tries.append(clock.monotonic())
        await runner.step(f"step-{len(tries)}", _nothing)
        raise ZeroDivisionError

    await loops.start(store, "run")
    async with Worker(store, [loops], clock=clock, poll=1):
        while (await control.status(store, "run")).status != "parked":
            await clock.sleep(10)
    assert len(tries) == 20
    clock.advance(60)
    async with Worker(store, [loops], clock=clock, poll=1):
        await clock.sleep(2000)
    assert len(tries) == 21
    assert (await control.status(store, "run")).status == "parked"


async def test_input_that_fits_no_more_parks(store: MemoryStore, clock: FakeClock) -> None:
    """By drift; the worker with the flow that can take it tries it once more, and it ends."""

    @flow(clock=clock, name="pay")
    async def before(runner: Runner, amount: str) -> str:
        return amount

    @flow(clock=clock, name="pay")
    async def after(runner: Runner, amount: int) -> int:
        return amount

    await before.start(store, "run", amount="ten")
    report = await Worker(store, [after], clock=clock).sweep()
    assert report.parked == 1
    clock.advance(1)
    assert (await Worker(store, [after], clock=clock).sweep()).parked == 1
    clock.advance(1)
    assert (await Worker(store, [before], clock=clock).sweep()).succeeded == 1


async def test_an_interrupted_step_stays_parked(store: MemoryStore, clock: FakeClock) -> None:
    """No worker, however late, tries it once more: somebody has to find out what came of it."""
    died = []

    async def once() -> None:
        died.append("once")
        raise Killed

    @flow(clock=clock)
    async def pay(runner: Runner) -> None:
        await runner.step("pay", once, at_most_once=True)

    with pytest.raises(Killed):
        await pay.run(store, "run")
    assert (await Worker(store, [pay], clock=clock).sweep()).parked == 1
    for _ in range(3):
        clock.advance(3600)
        assert (await Worker(store, [pay], clock=clock).sweep()).parked == 0
    assert died == ["once"]
    await control.resolve(store, "run", "pay", reason="it was paid", clock=clock)
    assert (await Worker(store, [pay], clock=clock).sweep()).succeeded == 1
