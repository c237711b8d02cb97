"""The blocking runner: every verb, and the threads in which functions are called."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import sys
import threading
import time
import warnings
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Self

import pytest

from durable_core import (
    DurableError,
    LockLost,
    MemoryStore,
    NestedStep,
    Recovered,
    RunBusy,
    RunCancelled,
    RunSuspended,
    SomeFailed,
    StepDrift,
    StepFailed,
    StepRecord,
    StepReused,
    current_step,
    in_step,
)
from durable_core import current_runner as current_async_runner
from durable_core.sync import Runner, Store, control, current_runner
from durable_core.sync._loop import Asker
from tests.sync.conftest import here, until


class Flaky:
    """Fails as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.left, self.calls = failures, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.left:
            raise ConnectionError(f"try {self.calls}")
        return "done"


def test_a_step_runs_once_in_the_thread_that_asked(store: Store) -> None:
    """A plain function is called in the caller's own thread; the recorded value comes back ever after."""
    for _ in range(2):
        with Runner(store, "run") as runner:
            assert runner.step("where", here) == threading.current_thread().name
            assert runner.step("pair", lambda: (1, 2)) == [1, 2]
    assert [record.step_id for record in runner.history()] == ["where", "pair"]


def test_an_async_function_runs_on_the_librarys_loop(store: Store) -> None:
    """An `async def` is awaited on one loop, in a thread that is nobody else's."""

    async def where() -> list[Any]:
        await asyncio.sleep(0)
        return [here(), id(asyncio.get_running_loop())]

    with Runner(store, "run") as runner:
        first, second = runner.step("a", where), runner.step("b", lambda: where())
        assert first == second
        assert first[0] == "durable-loop"


def test_a_step_knows_where_it_is(store: Store) -> None:
    """`current_step`, `in_step`, both `current_runner` and the caller's context variables hold in a step's function."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def look() -> list[Any]:
        step = current_step()
        return [step.run_id, step.step_id, step.attempt, in_step(), current_runner().run_id, variable.get()]

    with Runner(store, "run") as runner:
        variable.set("mine")
        assert runner.step("look", look) == ["run", "look", 1, True, "run", "mine"]
        assert not in_step()
        with pytest.raises(DurableError, match="outside a flow"):
            current_async_runner()


def test_failures_and_attempts(store: Store) -> None:
    """Attempts, failures and their causes are those of the asynchronous runner."""
    flaky, broken = Flaky(2), Flaky(9)
    with Runner(store, "run", max_attempts=3, retry_delay=0) as runner:
        assert runner.step("flaky", flaky) == "done"
        with pytest.raises(StepFailed) as failed:
            runner.step("broken", broken)
        assert isinstance(failed.value.__cause__, ConnectionError)
        assert failed.value.error.matches(ConnectionError)
    with Runner(store, "run") as runner, pytest.raises(StepFailed, match="try 3"):
        runner.step("broken", broken)
    assert (flaky.calls, broken.calls) == (3, 3)


def test_what_ends_no_program_leaves_a_step_as_it_is(store: Store) -> None:
    """A BaseException leaves the function, and nothing is recorded of it."""

    class Gone(BaseException):
        pass

    def go() -> None:
        raise Gone

    def leave() -> None:
        raise SystemExit(3)

    async def leave_the_loop() -> None:
        raise SystemExit(4)

    with Runner(store, "run") as runner:
        with pytest.raises(Gone):
            runner.step("go", go)
        with pytest.raises(SystemExit, match="3"):
            runner.step("leave", leave)
        with pytest.raises(SystemExit, match="4"):
            runner.step("async", leave_the_loop)
        assert runner.history() == ()
        assert runner.step("after", lambda: "still here") == "still here"


def test_at_most_once_asks_in_the_same_thread(store: Store) -> None:
    """An interrupted step asks `recover`, which is called where the step's function would be."""

    class Gone(BaseException):
        pass

    def go() -> str:
        raise Gone

    with pytest.raises(Gone), Runner(store, "run") as runner:
        runner.step("pay", go, at_most_once=True)
    asked: list[str] = []

    def recover() -> Recovered[str]:
        asked.append(here())
        return Recovered("paid")

    with Runner(store, "run") as runner:
        assert runner.step("pay", go, at_most_once=True, recover=recover) == "paid"
    assert asked == [here()]


def test_a_step_within_a_step_is_refused(store: Store) -> None:
    """A step of the same runner inside a step is an error, as with asyncio; one of another run is none."""

    def outer() -> str:
        with Runner(store, "other") as other:
            assert other.step("inner", here) == here()
        return str(runner.step("inner", here))

    with Runner(store, "run") as runner, pytest.raises(NestedStep):
        runner.step("outer", outer)


def test_an_id_is_one_call(store: Store) -> None:
    """The same id for another call is refused."""
    with Runner(store, "run") as runner:
        runner.step("one", lambda: 1)
        with pytest.raises(StepReused):
            runner.step("one", lambda: 2)


def test_waits(store: Store) -> None:
    """Sleeps, events, approvals and rounds wait in this thread, and replay."""
    control.send(store, "run", "packed", 7)
    asked: list[str] = []

    def ready() -> str | None:
        asked.append(here())
        return "ready" if len(asked) > 1 else None

    def decide() -> None:
        until(lambda: store.get("run", "ok"))
        control.approve(store, "run", "ok", by="ada", value=90)

    person = threading.Thread(target=decide)
    person.start()
    for _ in range(2):
        with Runner(store, "run") as runner:
            runner.sleep("nap", timedelta(milliseconds=20))
            assert runner.event("packed", returns=int) == 7
            decision = runner.approval("ok", {"amount": 100})
            assert (decision.approved, decision.by, decision.value) == (True, "ada", 90)
            assert runner.until("ready", ready, every=0.01) == "ready"
    person.join()
    assert asked == [here(), here()]


def test_a_wait_suspends_the_run(store: Store) -> None:
    """`RunSuspended` is a BaseException that leaves `with`, even if the program swallowed it."""
    assert not issubclass(RunSuspended, Exception)
    with pytest.raises(RunSuspended) as suspended, Runner(store, "run", wait_limit=0) as runner:
        runner.event("never")
    assert suspended.value.waiting_for == ("never",)


def test_a_cancelled_run_is_told(store: Store) -> None:
    """Steps without an outcome raise `RunCancelled`; those that undo something run all the same."""
    assert not issubclass(RunCancelled, Exception)
    with Runner(store, "run") as runner:
        runner.step("one", lambda: 1)
        control.cancel(store, "run", reason="enough")
        with pytest.raises(RunCancelled, match="enough"):
            runner.step("two", lambda: 2)
        assert runner.step("undo", lambda: "undone", when_cancelled=True) == "undone"


def test_a_map_uses_worker_threads(store: Store) -> None:
    """Several items at once, each in a worker thread; values in the order of the items."""
    together = threading.Barrier(3, timeout=30)

    def work(item: int) -> tuple[int, str]:
        together.wait()
        return item, here()

    with Runner(store, "run") as runner:
        found = runner.map("work", work, [1, 2, 3], limit=3)
        assert [item for item, _ in found] == [1, 2, 3]
        assert len({thread for _, thread in found} | {here()}) == 4
        with pytest.raises(SomeFailed) as failed:
            runner.map("fail", lambda item: 1 // item, [0, 1], key=str)
        assert failed.value.values == {"1": 1}


def test_the_first_wins_and_the_others_are_left(store: Store) -> None:
    """Contenders race in threads; one that waits is withdrawn, and a replay begins the winner alone."""
    began: list[str] = []

    def patience() -> str:
        began.append("patience")
        return str(runner.event("never"))

    def rail() -> str:
        began.append("rail")
        return runner.step("rail", lambda: "ticket")

    for _ in range(2):
        with Runner(store, "run") as runner:
            assert runner.first("quickest", patience=patience, rail=rail) == ("rail", "ticket")
    assert sorted(began) == ["patience", "rail", "rail"]
    assert [each.error.type for each in store.list("run") if each.error] == ["durable_core.errors.Withdrawn"]


def test_a_contender_that_lost_can_do_nothing_more(store: Store) -> None:
    """The call that a loser is in raises `CancelledError`, and so does every later one; `first` waits for no plain code."""
    raised: list[str] = []
    goes_on, ended = threading.Event(), threading.Event()

    def loser() -> None:
        for step_id in ("never", "later"):
            try:
                runner.event(step_id)
            except asyncio.CancelledError:
                raised.append(step_id)
        goes_on.wait(10)
        ended.set()

    def winner() -> int:
        until(lambda: store.get("run", "never"))
        return runner.step("win", lambda: 1)

    with Runner(store, "run") as runner:
        assert runner.first("race", loser=loser, winner=winner) == ("winner", 1)
        assert not ended.is_set()
        until(lambda: len(raised) == 2)
        goes_on.set()
        assert ended.wait(30)
    assert raised == ["never", "later"]
    assert runner.recorded("later") is None


def test_what_is_recorded_wins_before_anything_begins(store: Store) -> None:
    """A run that died before its race was recorded: the contender whose step is recorded wins, and the other begins nothing."""
    with Runner(store, "run") as runner:
        runner.step("rail", lambda: "ticket")
    began: list[str] = []

    def rail() -> str:
        time.sleep(0.02)  # a thread that gets no processor for a while
        return runner.step("rail", lambda: "ticket")

    with Runner(store, "run") as runner:
        other = partial(runner.step, "other", began.append, "other")
        assert runner.first("race", other=other, rail=rail) == ("rail", "ticket")
    assert began == []


def test_a_race_suspends_when_all_wait(store: Store) -> None:
    """As long as one contender is at work the run isn't suspended; when all wait it is, and goes on where it was."""
    with pytest.raises(RunSuspended) as suspended, Runner(store, "run", wait_limit=0) as runner:
        runner.first("race", a=lambda: runner.event("a"), b=lambda: runner.event("b"))
    assert {*suspended.value.waiting_for} == {"a", "b"}
    control.send(store, "run", "b", 3)
    with Runner(store, "run", wait_limit=0) as runner:
        assert runner.first("race", a=lambda: runner.event("a"), b=lambda: runner.event("b")) == ("b", 3)


def test_a_contender_is_a_plain_function(store: Store) -> None:
    """An async contender is refused, and what to write is said."""

    async def contender() -> None: ...

    with Runner(store, "run") as runner, pytest.raises(TypeError, match="plain, blocking function"):
        runner.first("race", a=contender)


def test_scopes_progress_and_what_is_recorded(store: Store) -> None:
    """`scope`, `publish`, `recorded`, `history` and `reset` are there as well."""
    with Runner(store, "run") as runner:
        part = runner.scope("part")
        assert part.step("one", here) == here()
        runner.publish("progress", {"done": 1})
        recorded = part.recorded("one")
        assert recorded is not None
        assert recorded.step_id == "part/one"
        assert control.published(store, "run", "progress").value() == {"done": 1}
        runner.reset()
        assert runner.history() == ()
    assert (runner.run_id, repr(runner.store)) == ("run", repr(store))


def test_the_lock_is_held_and_given_back(store: Store) -> None:
    """A second runner is refused while the first is inside `with`; later steps of one that was left are, too."""
    with Runner(store, "run") as runner:
        with pytest.raises(RunBusy), Runner(store, "run"):
            pass
        with pytest.raises(DurableError, match="in use"), runner:
            pass
        assert runner.step("one", lambda: 1) == 1
    with pytest.raises(LockLost):
        runner.step("two", lambda: 2)
    with Runner(store, "run"):
        pass


class Interrupting(MemoryStore):
    """Interrupts the main thread while it reads the log, and returns before anybody hears of that."""

    interrupts = True

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        if self.interrupts:
            self.interrupts = False
            _thread.interrupt_main()
            time.sleep(0.2)
        return await super().list(run_id)


def test_a_lock_that_was_taken_as_ctrl_c_came_is_given_back() -> None:
    """`with` was not entered, so the lock that its runner holds is nobody's."""
    store = Interrupting()
    with pytest.raises(KeyboardInterrupt), Runner(store, "run"):
        raise AssertionError("it is not entered")
    with Runner(store, "run") as runner:
        assert runner.step("one", lambda: 1) == 1


def test_a_drift_warning_points_at_the_line_that_asked(store: Store) -> None:
    """The warning names this file and the line of the step."""

    def double(number: int) -> int:
        return 2 * number

    for number in (1, 2):
        with Runner(store, "run") as runner, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            line, _ = here_line(), runner.step("double", double, number)
    (warning,) = caught
    assert issubclass(warning.category, StepDrift)
    assert (warning.filename, warning.lineno) == (__file__, line)
    with Runner(store, "run", on_drift="raise") as runner, pytest.raises(StepDrift):
        runner.step("double", double, 3)


def here_line() -> int:
    """Return the line that calls this."""
    return sys._getframe(1).f_lineno


def test_threads_share_a_runner_and_a_store(store: Store) -> None:
    """Each thread's functions are called in that thread, and every step has its own entry."""
    where: dict[int, str] = {}

    def work(number: int) -> None:
        where[number] = runner.step(f"step-{number}", here)

    with Runner(store, "run") as runner:
        threads = [threading.Thread(target=work, args=(number,), name=f"thread-{number}") for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert where == {number: f"thread-{number}" for number in range(20)}
    assert len(store.list("run")) == 20


def test_two_threads_that_ask_for_one_step_share_it(store: Store) -> None:
    """The same call in two threads runs once, and both get its value."""
    began, goes_on = threading.Event(), threading.Event()
    calls = count(1)

    def work() -> int:
        began.set()
        assert goes_on.wait(30)
        return next(calls)

    values: list[int] = []
    with Runner(store, "run") as runner:
        threads = [threading.Thread(target=lambda: values.append(runner.step("one", work))) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert began.wait(30)
        goes_on.set()
        for thread in threads:
            thread.join()
    assert values == [1, 1]


async def test_inside_a_running_loop_it_names_the_other_one(store: Store) -> None:
    """A blocking call in a thread with a running loop says what to use there."""
    runner = Runner(store, "run")
    for ask in (lambda: runner.step("one", here), lambda: store.list("run"), lambda: control.status(store, "run")):
        with pytest.raises(DurableError, match="await those of durable_core"):
            ask()


def test_an_asynchronous_store_serves_as_well() -> None:
    """A store in memory is given as it is; the asynchronous library refuses a blocking one, and says what to give."""
    memory = MemoryStore()
    with Runner(memory, "run") as runner:
        assert runner.step("one", here) == here()
    assert runner.store.get("run", "one") == asyncio.run(memory.get("run", "one"))
    with pytest.raises(TypeError, match="engine.asynchronous"):
        Store(runner.store)  # type: ignore[arg-type]  # which is blocking already


def test_wrong_input_is_refused_as_it_is_with_asyncio(store: Store) -> None:
    """Bad ids, options and functions are one clear error before anything runs."""
    with pytest.raises(ValueError, match="run_id"):
        Runner(store, "")
    with pytest.raises(TypeError, match="store must be an open store"):
        Runner("sqlite:./runs.db", "run")  # type: ignore[arg-type]
    with Runner(store, "run") as runner:
        with pytest.raises(TypeError, match="must be a function"):
            runner.step("one", 7)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="unknown option"):
            runner.step("one", here, max_attempt=2)  # type: ignore[call-overload]
        assert runner.history() == ()


class Opened(MemoryStore):
    """Tells whether it is open."""

    is_open = False

    async def __aenter__(self) -> Self:
        self.is_open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        self.is_open = False


def test_ctrl_c_before_something_is_left_leaves_it_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt that comes between the end of `with` and its last call keeps no lock, and leaves no store open."""
    wait, store = Asker.wait, Opened()
    left: list[str] = []

    def interrupted(self: Asker, work: Coroutine[Any, Any, Any]) -> Any:
        if work.__qualname__.startswith("leave.") and here_name not in left:
            left.append(here_name)
            work.close()
            raise KeyboardInterrupt
        return wait(self, work)

    monkeypatch.setattr(Asker, "wait", interrupted)
    with Store(store) as blocking:
        here_name = "runner"
        with pytest.raises(KeyboardInterrupt), Runner(blocking, "run") as runner:
            runner.step("one", lambda: 1)
        with Runner(blocking, "run") as runner:
            assert runner.step("one", lambda: 1) == 1
    here_name = "store"
    with pytest.raises(KeyboardInterrupt), Store(store):
        assert store.is_open
    assert left == ["runner", "store"]
    assert not store.is_open


def test_ctrl_c_twice_in_a_row_leaves_nothing_that_hangs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second interrupt, before the loop has heard of the first, keeps no step at work that its runner would wait for."""
    tell, interrupts = asyncio.BaseEventLoop.call_soon_threadsafe, 2
    hangs = threading.Timer(20, _thread.interrupt_main)

    def interrupt() -> None:
        nonlocal interrupts
        interrupts -= 1
        raise KeyboardInterrupt

    def interrupted(self: asyncio.BaseEventLoop, callback: Any, *args: Any, **options: Any) -> Any:
        if interrupts == 1 and getattr(callback, "__name__", "") == "_give_up":
            interrupt()
        return tell(self, callback, *args, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon_threadsafe", interrupted)
    hangs.start()
    with pytest.raises(KeyboardInterrupt), Runner(store, "run") as runner:
        runner.step("one", interrupt)
    assert interrupts == 0
    assert not hangs.finished.is_set()
    hangs.cancel()
    with Runner(store, "run") as runner:
        assert runner.step("one", lambda: 1) == 1
