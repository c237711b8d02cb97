"""How a run that waits hears through its store of what other processes do, and what it does where the store can't tell."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from durable_core import MemoryStore, RunCancelled, Runner, StepRecord, control, flow
from durable_core._log import watches
from durable_core._running import looking
from durable_core.clock import SystemClock

SECONDS = 20
NEVER = 3600.0
CURRENT = ContextVar[Runner]("CURRENT")


class Watched(MemoryStore):
    """Counts its watches and the rounds of looks. Its runners take no locks, so that it tells what a test appends."""

    def __init__(self, poll_seconds: float = NEVER) -> None:
        super().__init__()
        self.poll_seconds = poll_seconds
        self.begun = Counter[str]()
        self.listening = Counter[str]()
        self.rounds: list[set[str]] = []
        self.away = 0

    async def watch(self, run_id: str) -> AsyncIterator[None]:
        self.begun[run_id] += 1
        async for _ in self.told(run_id):
            self.listening[run_id] += 1
            yield

    def told(self, run_id: str) -> AsyncIterator[None]:
        """Say what a watch yields."""
        return super().watch(run_id)

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        self.rounds.append({run_id for run_id, _, _ in known})
        if self.away:
            self.away -= 1
            raise OSError("away")
        return await super().newer(known)

    def add(self, run_id: str = "run", step_id: str = "go", revision: int = 1, **fields: Any) -> None:
        """Append an entry that nobody is told."""
        record = StepRecord(run_id=run_id, step_id=step_id, revision=revision, **{"kind": "event", "result": b"7", **fields})
        entries, newest = self._runs.setdefault(run_id, ({}, {}))
        entries[step_id, revision] = newest[step_id] = record


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


def waits(store: MemoryStore, run_id: str = "run", step_id: str = "go") -> asyncio.Task[Any]:
    return asyncio.ensure_future(Runner(store, run_id).event(step_id))


async def ends(task: asyncio.Future[Any]) -> Any:
    return await asyncio.wait_for(task, SECONDS)


async def acts(store: MemoryStore, run_id: str = "run", step_id: str = "go", revision: int = 1, **fields: Any) -> None:
    """Append as another process does, which tells nobody here."""
    fields = {"kind": "event", "result": b"7", **fields}
    await store.append(StepRecord(run_id=run_id, step_id=step_id, revision=revision, **fields))


async def test_an_act_of_another_process_is_heard_at_once() -> None:
    """Not at the next look, which would be an hour later: a value, and a cancellation."""
    store = Watched()
    one, two = waits(store, "one"), waits(store, "two")
    await until(lambda: store.listening.keys() == {"one", "two"})
    await acts(store, "one")
    assert await ends(one) == 7
    await acts(store, "two", "$cancel", 0, kind="flow")
    with pytest.raises(RunCancelled):
        await ends(two)


async def test_the_end_of_a_child_that_another_process_drives_is_heard_at_once() -> None:
    """Who waits for another run watches that one as well as its own."""
    store = Watched()

    @flow
    async def child(runner: Runner) -> int:
        return 0

    @flow
    async def parent(runner: Runner) -> Any:
        return await runner.result("done", await runner.flow("child", child, wait=False), returns=int)

    running = asyncio.ensure_future(parent.run(store, run_id="run"))
    await until(lambda: store.listening.keys() == {"run", "run/child"})
    asked = await store.get("run/child", "$flow")
    assert asked is not None
    await acts(store, "run/child", "$flow", 1, kind="flow", name="child", note=asked.note)
    assert await ends(running) == 7


async def test_the_waits_of_a_run_share_one_watch() -> None:
    """And a wait that ended leaves it to the others."""
    store = Watched()
    runner = Runner(store, "run")
    tasks = [asyncio.ensure_future(runner.event(f"go-{number}")) for number in range(50)]
    await until(lambda: store.listening["run"])
    for number, task in enumerate(tasks):
        await acts(store, step_id=f"go-{number}")
        assert await ends(task) == 7
    assert store.begun == {"run": 1}


async def test_acts_that_are_told_together_are_looked_for_together() -> None:
    """However many runs wait: neither their beginnings nor what they are told costs a request each."""
    store = Watched()
    tasks = [waits(store, f"run-{number}") for number in range(200)]
    await until(lambda: len(store.listening) == 200)
    for number in range(200):
        await acts(store, f"run-{number}")
    assert await ends(asyncio.gather(*tasks)) == [7] * 200
    assert len(store.rounds) < 40


async def test_what_came_while_the_watch_began_is_not_missed() -> None:
    """The first thing that a watch says is that it listens: who waits looks once more."""

    class Late(Watched):
        async def told(self, run_id: str) -> AsyncIterator[None]:
            self.add()
            yield
            await asyncio.Event().wait()

    assert await ends(waits(Late())) == 7


async def test_a_run_that_is_watched_is_not_polled() -> None:
    """Those whose watches have not begun are, beside it."""

    class Deaf(Watched):
        async def told(self, run_id: str) -> AsyncIterator[None]:
            if run_id == "deaf":
                await asyncio.Event().wait()
            async for _ in MemoryStore.watch(self, run_id):
                yield

    store = Deaf(0.001)
    heard, deaf = waits(store, "heard"), waits(store, "deaf")
    await until(lambda: store.listening["heard"])
    await until(lambda: store.rounds[-1] == {"deaf"})
    store.rounds.clear()
    await until(lambda: len(store.rounds) == 20)
    assert store.rounds == [{"deaf"}] * 20
    store.add("deaf")
    await acts(store, "heard")
    assert await ends(asyncio.gather(heard, deaf)) == [7, 7]


async def test_a_run_that_is_watched_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what a watch does not tell, such as what an outage swallowed."""
    monkeypatch.setattr(looking, "WATCHED_SECONDS", 0.05)
    store = Watched(0.001)
    waiting = waits(store)
    await until(lambda: store.listening["run"])
    begun = len(store.rounds)
    await until(lambda: len(store.rounds) > begun + 3)  # one as it began to listen, and one that was due
    store.add()
    assert await ends(waiting) == 7


async def test_a_look_that_failed_is_made_again() -> None:
    """In the next round, though the store tells nothing more."""
    store = Watched(0.01)
    waiting = waits(store)
    await until(lambda: store.listening["run"] and store.rounds)
    store.away = 3
    await acts(store)
    assert await ends(waiting) == 7
    assert store.away == 0


@pytest.mark.parametrize("how", ["ends at once", "never yields", "yields once and ends", "yields once and raises"])
async def test_where_the_store_can_not_tell_it_is_polled(how: str) -> None:
    """As often as if it had no watch."""

    class Mute(Watched):
        async def told(self, run_id: str) -> AsyncIterator[None]:
            if "yields once" in how:
                yield
            if "raises" in how:
                raise OSError("away")
            if how == "never yields":
                await asyncio.Event().wait()

    store = Mute(0.001)
    waiting = waits(store)
    await until(lambda: store.begun["run"])
    store.rounds.clear()
    await until(lambda: len(store.rounds) == 20)
    store.add()
    assert await ends(waiting) == 7
    if "raises" not in how:  # which is tried again after a second
        assert store.begun == {"run": 1}


async def test_a_watch_that_raises_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After pauses that grow to thirty seconds; that it raised is logged once for all that wait."""
    pauses = [watches._next_try(number) for number in range(1, 8)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    monkeypatch.setattr(watches, "_next_try", lambda number: number / 1000)

    class Fails(Watched):
        async def told(self, run_id: str) -> AsyncIterator[None]:
            if self.begun[run_id] == 2:
                raise asyncio.CancelledError  # of a task that somebody else cancelled
            if self.begun[run_id] < 5:
                raise OSError("away")
            async for _ in MemoryStore.watch(self, run_id):
                yield

    store = Fails()
    tasks = [waits(store, run_id) for run_id in ("one", "two")]
    await until(lambda: store.listening.keys() == {"one", "two"})
    assert store.begun == {"one": 5, "two": 5}
    for run_id in ("one", "two"):
        await acts(store, run_id)
    assert await ends(asyncio.gather(*tasks)) == [7, 7]
    assert [record.getMessage() for record in caplog.records if "could not watch" in record.getMessage()] == [
        "could not watch run 'one', trying again and looking meanwhile: OSError('away')"
    ]


async def test_a_watch_that_tells_for_nothing_ends_no_wait() -> None:
    """Each telling is a look, and no more."""

    class Chatty(Watched):
        async def told(self, run_id: str) -> AsyncIterator[None]:
            while True:
                yield
                await asyncio.sleep(0.001)

    store = Chatty()
    waiting = waits(store)
    await until(lambda: store.listening["run"] > 20)
    assert not waiting.done()
    assert len(store.rounds) <= store.listening["run"]
    store.add()
    assert await ends(waiting) == 7


async def test_a_wait_that_is_over_at_once_begins_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delay of milliseconds is not worth a request."""
    monkeypatch.setattr(watches, "_AFTER", SECONDS)
    store = Watched()
    await Runner(store, "run").sleep("nap", 0.01)
    assert store.begun == {}


@pytest.mark.parametrize("how", ["goes on", "is cancelled"])
async def test_the_last_wait_ends_the_watch(how: str) -> None:
    """No task is left, and nothing in the store or the registry."""
    store = Watched()
    tasks = [waits(store, step_id=step_id) for step_id in ("one", "two")]
    await until(lambda: store.listening["run"])
    for task, step_id in zip(tasks, ("one", "two"), strict=True):
        assert store._watches
        if how == "goes on":
            await acts(store, step_id=step_id)
        else:
            task.cancel()
        await asyncio.wait([task], timeout=SECONDS)
        assert task.done()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert not store._watches
    assert not watches._all
    assert not looking._lookers


async def test_a_watch_that_does_not_let_go_holds_up_nobody() -> None:
    """A wait that ends doesn't wait for its watch."""

    class Stubborn(Watched):
        async def told(self, run_id: str) -> AsyncIterator[None]:
            try:
                yield
                await asyncio.Event().wait()
            finally:
                self.stuck = True
                await asyncio.Event().wait()

    store = Stubborn()
    waiting = waits(store)
    await until(lambda: store.listening["run"])
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ends(waiting)
    await until(lambda: store.stuck)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def test_a_loop_that_was_closed_is_forgotten() -> None:
    """Also where nobody ended its watch; the store serves the next loop."""
    store = Watched()
    left = watches.watching(store, "run", lambda: None)

    async def begins() -> None:
        left.__enter__()
        await until(lambda: store.listening["run"])

    async def again() -> None:
        waiting = waits(store)
        await until(lambda: store.listening["run"] == 2)
        assert [loop.is_closed() for loop, _ in watches._all] == [False]
        await acts(store)
        assert await ends(waiting) == 7

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begins())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # that it is left is what this is about
    loop.close()
    asyncio.run(again())
    left.__exit__(None, None, None)


async def test_a_run_that_is_over_is_not_kept_by_the_watch_of_those_that_wait() -> None:
    """Two runners of one run share its watch, which began with the first of them."""
    store, runners = Watched(), list[weakref.ref[Runner]]()

    async def first() -> Any:
        runner = Runner(store, "run")
        CURRENT.set(runner)
        runners.append(weakref.ref(runner))
        return await runner.event("one")

    over = asyncio.ensure_future(first())
    await until(lambda: store.listening["run"])
    waiting = waits(store, step_id="two")
    await until(lambda: ("two", 0) in store._runs["run"][0])
    await acts(store, step_id="one")
    assert await ends(over) == 7
    del over
    await asyncio.sleep(0)  # until now the loop holds the task whose end it woke this one with
    gc.collect()
    assert [runner() for runner in runners] == [None]
    await acts(store, step_id="two")
    assert await ends(waiting) == 7


class TestFromOutside:
    async def test_the_end_is_heard_at_once(self) -> None:
        """`result` and `follow` wait for a run that another process drives."""
        store = Watched()
        await acts(store, step_id="$flow", revision=0, kind="flow", status="started")

        async def follows() -> list[StepRecord]:
            return [record async for record in control.follow(store, "run", "progress")]

        result, followed = asyncio.ensure_future(control.result(store, "run")), asyncio.ensure_future(follows())
        await until(lambda: store.listening["run"])
        await acts(store, step_id="$flow", revision=1, kind="flow")
        assert await ends(result) == 7
        assert await ends(followed) == []
        assert store.begun == {"run": 1}

    async def test_what_is_watched_is_polled_every_thirty_seconds(self) -> None:
        """As often as the store says until the watch listens, and again when it has ended."""

        class Stops(Watched):
            stop = asyncio.Event()

            async def told(self, run_id: str) -> AsyncIterator[None]:
                yield
                await self.stop.wait()

        class Sleeps(SystemClock):
            def __init__(self) -> None:
                self.slept: list[float] = []

            async def sleep(self, seconds: float) -> None:
                self.slept.append(seconds)
                await asyncio.Event().wait()

        store, clock = Stops(2.0), Sleeps()
        await acts(store, step_id="$flow", revision=0, kind="flow", status="started")
        result = asyncio.ensure_future(control.result(store, "run", clock=clock))
        await until(lambda: clock.slept == [2.0, 30.0])
        store.stop.set()
        await until(lambda: clock.slept == [2.0, 30.0, 2.0])
        result.cancel()
        await asyncio.wait([result])
