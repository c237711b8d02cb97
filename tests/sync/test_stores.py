"""A blocking program on every store: steps, waits, flows, and what `control` does; several threads share the store."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durable_core import MemoryStore, NotFound, Refused, StepFailed, StoreError, engine
from durable_core.sync import Runner, Store, control, flow, open_store
from tests.sync.conftest import here, until


@flow
def ship(runner: Runner, order: str) -> str:
    runner.step("pack", lambda: order)
    runner.publish("progress", {"packed": order})
    return runner.event("carrier", returns=str)


def test_a_program_on_each_store(place: str) -> None:
    """Threads share one store, whose connections belong to the library's loop; no password shows."""
    with open_store(place) as store:
        with ThreadPoolExecutor(4, "shipping") as pool:
            runs = [pool.submit(ship.run, store, f"ship-{number}", order=str(number)) for number in range(4)]
            for number in range(4):
                until(lambda number=number: store.get(f"ship-{number}", "carrier"))  # type: ignore[misc]
                control.send(store, f"ship-{number}", "carrier", f"by train {number}")
            assert [run.result(60) for run in runs] == [f"by train {number}" for number in range(4)]
        assert sorted(store.runs("ship-")) == [f"ship-{number}" for number in range(4)]
        assert [record.value() for record in control.follow(store, "ship-1", "progress")] == [{"packed": "1"}]
        assert control.result(store, "ship-2", returns=str) == "by train 2"
        assert len([*control.runs(store, flow="ship", limit=3)]) == 3
        with pytest.raises(NotFound):
            control.status(store, "nobody")
        store.clear("ship-0")
        assert [*store.list("ship-0")] == []
        assert "secret" not in repr(store)


def test_a_password_shows_nowhere() -> None:
    """The repr of a blocking store is that of its own, without what is secret."""
    store = open_store("postgresql://ada:secret@nowhere.invalid/db")
    assert "secret" not in repr(store) + repr(Runner(store, "run"))


def test_a_store_that_can_do_less() -> None:
    """A store without runs says so, and one that is no store is refused."""

    class Small:
        """Has the four methods and no more."""

        def __init__(self) -> None:
            memory = MemoryStore()
            self.append, self.get, self.list, self.clear = memory.append, memory.get, memory.list, memory.clear

    with Store(Small()) as small, Runner(small, "run") as runner:
        assert runner.step("here", here) == here()
        with pytest.raises(Refused, match="can't list its runs"):
            small.runs()
    with pytest.raises(TypeError, match="must have the methods"):
        Store(object())  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="no store is given"):
        open_store()


class Counting(MemoryStore):
    """Tells how many lists of its runs are open."""

    open = 0

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        self.open += 1
        try:
            async for run_id in super().runs(prefix):
                yield run_id
        finally:
            self.open -= 1


def test_an_iterator_that_is_left_is_closed() -> None:
    """Leaving a loop early, closing and forgetting the iterator closes the asynchronous one."""
    memory = Counting()
    store = Store(memory)
    for number in range(3):
        with Runner(store, f"run-{number}") as runner:
            runner.step("one", lambda: 1)
    for _ in store.runs():
        assert memory.open == 1
        break
    gc.collect()
    until(lambda: not memory.open)
    names = store.runs()
    next(names)
    names.close()
    assert memory.open == 0

    async def forget() -> None:
        names = await asyncio.to_thread(lambda: (lambda names: (next(names), names)[1])(store.runs()))
        assert memory.open == 1
        del names  # in a thread with a running loop

    asyncio.run(forget())
    gc.collect()
    until(lambda: not memory.open)


def test_what_an_iterator_is_asked_for_is_checked_at_once(store: Store) -> None:
    """A wrong argument is an error where the iterator is made, and not where it is first read."""
    with pytest.raises(TypeError, match="nobody"):
        control.runs(store, nobody=1)  # type: ignore[call-arg]


def test_a_copy_between_two_stores(tmp_path: Path) -> None:
    """`copy` takes blocking and asynchronous stores, and `store=` may be named."""
    memory = MemoryStore()
    with open_store(f"sqlite:{tmp_path / 'runs.db'}") as store, Runner(store, "run") as runner:
        runner.step("one", lambda: 1)
    with open_store(f"sqlite:{tmp_path / 'runs.db'}") as store:
        assert control.copy(store, "run", memory) == 1
        assert control.status(store=memory, run_id="run").status == "open"  # type: ignore[call-arg]


def test_a_step_in_a_transaction(tmp_path: Path) -> None:
    """A plain function and its record commit together, in the store's own thread."""
    with open_store(f"sqlite:{tmp_path / 'runs.db'}") as store, Runner(store, "run") as runner:
        runner.transaction("table", lambda connection: connection.execute("CREATE TABLE mine (n)"), returns=None)
        runner.transaction("row", lambda connection: connection.execute("INSERT INTO mine VALUES (1)"), returns=None)
        assert runner.transaction("count", lambda connection: connection.execute("SELECT n FROM mine").fetchall()) == [[1]]


def test_a_transaction_waits_for_no_other_call(tmp_path: Path) -> None:
    """In the store's own thread a blocking call would wait for itself: it is refused, and nothing is committed."""
    other = open_store("memory:")
    with open_store(f"sqlite:{tmp_path / 'runs.db'}") as store, Runner(store, "run") as runner:
        with pytest.raises(StepFailed, match="would wait for its own thread"):
            runner.transaction("ask", lambda connection: other.get("run", "step"))
        assert runner.step("after", lambda: other.get("run", "step"), returns=None) is None


async def insert(connection: Any, number: int) -> int:
    await connection.execute("CREATE TABLE mine (n int)")
    await connection.execute("INSERT INTO mine VALUES ($1)", number)
    return number


def test_a_step_in_a_transaction_of_postgres(postgres_url: str) -> None:
    """There `fn` is async, and runs on the loop to which the connection belongs."""
    with open_store(postgres_url) as store, Runner(store, "run") as runner:
        assert runner.transaction("insert", insert, 7) == 7


def test_handlers_are_called_on_the_loop() -> None:
    """`on_event` is told as with asyncio; what a handler sets in context variables holds in the step's function."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    threads: set[str] = set()

    def on_event(event: Any) -> None:
        threads.add(here())
        variable.set(event.type)

    with Runner(MemoryStore(), "run", on_event=on_event) as runner:
        assert runner.step("look", variable.get) == "step:start"
    assert threads == {"durable-loop"}


def test_the_loop_is_one_for_all_threads() -> None:
    """Many threads that begin at once share one loop."""
    together = threading.Barrier(8)

    def first() -> int:
        together.wait(30)
        with Runner(MemoryStore(), "run") as runner:
            return runner.step("loop", loop_id)

    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(lambda _: first(), range(8))}) == 1
    assert [thread.name for thread in threading.enumerate()].count("durable-loop") == 1
    assert engine.asynchronous(Store(MemoryStore())) is not None
