"""A worker says in its log, in the run's status and to `on_end` what became of its runs."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from durable_core import Runner, control, flow
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


async def closed() -> None:
    raise ConnectionError("the bank is closed")


@flow
async def typo(runner: Runner) -> None:
    raise NameError("name 'amont' is not defined")


@flow
async def pay(runner: Runner) -> None:
    await runner.step("pay", closed)


@flow
async def ship(runner: Runner) -> str:
    await runner.event("packed", returns=None)
    return "shipped"


async def test_a_crash_and_its_end_are_logged(store: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A crash is a warning with its traceback and the next try, and a parked run an error with what mends it."""
    await typo.options(clock=clock).start(store, "one")
    async with Worker(store, [typo], clock=clock, max_crashes=2):
        await clock.sleep(60)
    told = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "durable_worker"]
    assert told == [
        (logging.WARNING, "run 'one' of flow 'typo' crashed, and is tried again in 1 s"),
        (logging.WARNING, "run 'one' of flow 'typo' crashed, and is tried again in 2 s"),
        (
            logging.ERROR,
            "run 'one' of flow 'typo' is parked: it crashed 2 times without progress; the last error was NameError:"
            " name 'amont' is not defined. What helps: mend the flow and deploy it; or durable_core.control.retry(store, 'one')",
        ),
    ]
    assert caplog.text.count("Traceback") == 2
    assert {record.run_id for record in caplog.records if record.name == "durable_worker"} == {"one"}


async def test_a_failure_is_logged(store: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A run that failed is a warning that names the step; it has ended, so no traceback is shown."""
    await pay.options(clock=clock).start(store, "one")
    report = await Worker(store, [pay], clock=clock).sweep()
    assert report.failed == 1
    (told,) = (record for record in caplog.records if record.name == "durable_worker")
    assert told.getMessage() == "run 'one' failed at step 'pay': ConnectionError: the bank is closed"
    assert (told.levelno, told.exc_info) == (logging.WARNING, None)


async def test_why_a_run_is_parked_names_deaths_and_crashes(store: MemoryStore, clock: FakeClock) -> None:
    """What didn't happen is not counted up: a run whose process died is parked for that."""

    class Killed(BaseException):
        pass

    @flow(name="die", clock=clock)
    async def die(runner: Runner) -> None:
        raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            await die.run(store, "one")
    await Worker(store, [die], clock=clock, max_crashes=2).sweep()
    run = await control.status(store, "one")
    assert run.why == "its process died 2 times without progress"


async def test_an_end_is_told_once_though_something_comes_later(store: MemoryStore, clock: FakeClock) -> None:
    """A wake-up that comes when the run has ended tells nobody anew in the same worker; a worker that starts later tells it."""
    ended: list[str] = []
    worker = Worker(store, [ship], clock=clock)
    worker.on_end(lambda run: ended.append(f"{run.run_id} {run.status} {run.result}"))
    await ship.options(clock=clock).start(store, "one")
    await control.send(store, "one", "packed", clock=clock)
    async with worker:
        await control.result(store, "one", clock=clock)
        for _ in range(3):
            await store.set_wakeup("one", "ship", clock.now())
            await clock.sleep(timedelta(minutes=2).total_seconds())
        assert ended == ["one succeeded shipped"]
        await control.fork(store, "one", "two", before="packed", clock=clock)
        await control.send(store, "two", "packed", clock=clock)
        await clock.sleep(timedelta(minutes=2).total_seconds())
    assert ended == ["one succeeded shipped", "two succeeded shipped"]
    other = Worker(store, [ship], clock=clock)
    other.on_end(lambda run: ended.append("again"))
    await store.set_wakeup("one", "ship", clock.now())
    await other.sweep()
    assert ended == ["one succeeded shipped", "two succeeded shipped", "again"]


async def test_a_run_that_ends_again_is_told_again(store: MemoryStore, clock: FakeClock) -> None:
    """A failed run that somebody retried ends a second time, and that is told."""
    ended: list[str] = []
    worker = Worker(store, [pay], clock=clock)
    worker.on_end(lambda run: ended.append(run.status))
    await pay.options(clock=clock).start(store, "one")
    async with worker:
        await clock.sleep(10)
        assert ended == ["failed"]
        await control.retry(store, "one", clock=clock)
        await clock.sleep(10)
    assert ended == ["failed", "failed"]
