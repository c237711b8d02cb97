"""Whoever lets a run go on from outside sets a wake-up, whatever dies in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from durable_core import Runner, RunSuspended, control, flow
from durable_core.errors import Refused, StepFailed, StepInterrupted
from durable_core.record import StepRecord
from durable_core.store import Store, WakeUp
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock

MINUTE = timedelta(minutes=1)
CLOCK = FakeClock()


class Killed(BaseException):
    """What a process that is killed raises."""


class Fuse:
    """A store whose process is killed before its n-th call, and tells what was called."""

    def __init__(self, store: MemoryStore, calls: float = float("inf")) -> None:
        self._store = store
        self._left = calls
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        whole = getattr(self._store, name)
        if name not in ("append", "get", "list", "clear", "set_wakeup", "take_wakeups", "clear_wakeups", "newer", "flows"):
            return whole

        async def call(*args: Any, **options: Any) -> Any:
            if self._left <= 0:
                raise Killed
            self._left -= 1
            self.called.append(name)
            return await whole(*args, **options)

        return call


@flow(clock=CLOCK, wait_limit=0)
async def order(runner: Runner, amount: int = 1) -> object:
    if await runner.event("paid", timeout=timedelta(days=2)):
        return (await runner.approval("ok", amount)).approved
    return await runner.step("pay", lambda: 1 / 0)


@flow(clock=CLOCK, wait_limit=0)
async def interrupted(runner: Runner) -> None:
    async def die() -> None:
        raise Killed

    await runner.step("pay", die, at_most_once=True)


async def due(store: MemoryStore, name: str) -> Sequence[WakeUp]:
    """Take what is due now, and let it be shown again."""
    taken = await store.take_wakeups([name], limit=99, visibility_timeout=timedelta(seconds=1))
    CLOCK.advance(1)
    return taken


async def suspended(store: Store) -> None:
    with pytest.raises(RunSuspended):
        await order.run(store, "run")


async def asks(store: Store) -> None:
    await control.send(store, "run", "paid", True, clock=CLOCK)
    await suspended(store)


async def failed(store: Store) -> None:
    await control.send(store, "run", "paid", False, clock=CLOCK)
    with pytest.raises(StepFailed):
        await order.run(store, "run")


async def stuck(store: Store) -> None:
    with pytest.raises(Killed):
        await interrupted.run(store, "run")
    with pytest.raises(StepInterrupted):
        await interrupted.run(store, "run")


async def nothing(store: Store) -> None:
    pass


async def cast(store: Store) -> StepRecord:
    return await control.approve(store, "run", "ok", by="alice", clock=CLOCK)


async def decline(store: Store) -> StepRecord:
    return await control.send_failure(store, "run", "paid", error="no", clock=CLOCK)


async def set_by_hand(store: Store) -> StepRecord:
    return await control.resolve(store, "run", "pay", 1, reason="paid by hand", clock=CLOCK)


Act = Callable[[Any], Awaitable[object]]
ACTS: dict[str, tuple[Act, str, str, Act]] = {
    "start": (nothing, "run", "order", lambda store: order.start(store, "run", amount=1)),
    "approve": (asks, "run", "order", cast),
    "reject": (asks, "run", "order", lambda store: control.reject(store, "run", "ok", by="alice", clock=CLOCK)),
    "send": (suspended, "run", "order", lambda store: control.send(store, "run", "paid", True, clock=CLOCK)),
    "send_failure": (
        suspended,
        "run",
        "order",
        decline,
    ),
    "resolve": (
        failed,
        "run",
        "order",
        set_by_hand,
    ),
    "retry": (failed, "run", "order", lambda store: control.retry(store, "run", clock=CLOCK)),
    "retry a step": (stuck, "run", "interrupted", lambda store: control.retry(store, "run", "pay", clock=CLOCK)),
    "cancel": (suspended, "run", "order", lambda store: control.cancel(store, "run", clock=CLOCK)),
    "fork": (failed, "new", "order", lambda store: control.fork(store, "run", "new", before="pay", clock=CLOCK)),
}


@pytest.mark.parametrize("name", ACTS)
async def test_an_act_wakes_the_run_now(name: str) -> None:
    """After the act there is a wake-up that is due, and none that is left for later."""
    before, run_id, flow_name, act = ACTS[name]
    store = MemoryStore(clock=CLOCK)
    await before(store)
    await store.clear_wakeups(await due(store, flow_name))
    await act(store)
    woken = await due(store, flow_name)
    assert [wakeup.run_id for wakeup in woken] == [run_id]
    await store.clear_wakeups(woken)
    CLOCK.advance(2 * MINUTE)
    assert not await due(store, flow_name)


@pytest.mark.parametrize("name", ACTS)
async def test_an_act_that_is_cut_off_wakes_the_run(name: str) -> None:
    """Killed before any of its calls of the store: what was appended is found by a wake-up within a minute, or nothing was."""
    before, run_id, flow_name, act = ACTS[name]
    calls = 0
    while True:
        store = MemoryStore(clock=CLOCK)
        await before(store)
        await store.clear_wakeups(await due(store, flow_name))
        known = len(await store.list(run_id))
        fuse = Fuse(store, calls)
        try:
            await act(fuse)
            break
        except Killed:
            pass
        CLOCK.advance(MINUTE)
        flows = [record for record in await store.list(run_id) if record.step_id == "$flow"]
        if len(await store.list(run_id)) > known and flows:
            woken = {wakeup.run_id for wakeup in await due(store, flow_name)}
            assert run_id in woken, f"{name}, killed after {fuse.called}: nobody looks at the run"
        calls += 1
    assert calls > 3


@pytest.mark.parametrize("name", ["approve", "send", "send_failure", "cancel", "start", "fork"])
async def test_an_act_repeated_wakes_the_run_again(name: str) -> None:
    """The same call again appends nothing and sets a wake-up all the same: the first one may have been cut off."""
    before, run_id, flow_name, act = ACTS[name]
    store = MemoryStore(clock=CLOCK)
    await before(store)
    await act(store)
    await store.clear_wakeups(await due(store, flow_name))
    entries = await store.list(run_id)
    await act(store)
    assert await store.list(run_id) == entries
    assert [wakeup.run_id for wakeup in await due(store, flow_name)] == [run_id]


async def test_a_refusal_wakes_the_run_too() -> None:
    """Who finds the deadline passed appends that, and is refused: the run goes on with it."""
    store = MemoryStore(clock=CLOCK)
    await suspended(store)
    CLOCK.advance(timedelta(days=3))
    await store.clear_wakeups(await due(store, "order"))
    with pytest.raises(Refused):
        await control.send(store, "run", "paid", True, clock=CLOCK)
    assert [wakeup.run_id for wakeup in await due(store, "order")] == ["run"]


async def test_an_event_before_the_run_looks_for_the_flow_once_more() -> None:
    """A run that begins while an event is sent is woken: whoever sends looks for the flow after the append."""
    store = MemoryStore(clock=CLOCK)

    class Late(Fuse):
        async def append(self, record: StepRecord) -> StepRecord:
            await store.append(StepRecord(run_id="run", step_id="$flow", revision=0, status="waiting", kind="flow", name="order"))
            return await store.append(record)

    await control.send(Late(store), "run", "paid", True, clock=CLOCK)  # type: ignore[arg-type]
    assert [wakeup.run_id for wakeup in await due(store, "order")] == ["run"]


async def test_an_event_without_a_run_wakes_nobody() -> None:
    """A run that isn't there yet has nobody to wake: it finds the event when it begins."""
    store = MemoryStore(clock=CLOCK)
    await control.send(store, "run", "paid", True, clock=CLOCK)
    CLOCK.advance(2 * MINUTE)
    assert not await due(store, "order")


async def test_a_run_that_suspends_sets_its_own_wakeup() -> None:
    """In any program: a worker goes on with it at its time."""
    store = MemoryStore(clock=CLOCK)
    await suspended(store)
    assert not await due(store, "order")
    CLOCK.advance(timedelta(days=2))
    assert [wakeup.run_id for wakeup in await due(store, "order")] == ["run"]


async def test_asking_for_later_wakes_later() -> None:
    """`start(at=…)` sets a wake-up for that time."""
    store = MemoryStore(clock=CLOCK)
    await order.start(store, "run", at=timedelta(hours=1), amount=1)
    CLOCK.advance(2 * MINUTE)
    assert not await due(store, "order")
    CLOCK.advance(timedelta(hours=1))
    assert [wakeup.run_id for wakeup in await due(store, "order")] == ["run"]


@flow(clock=CLOCK, wait_limit=0)
async def parent(runner: Runner) -> object:
    if await runner.event("waits"):
        child = await runner.flow("one", order, wait=False, amount=1)
        return await runner.result("got", child)
    return await runner.flow("one", order, amount=1)


async def test_a_child_wakes_the_topmost_run() -> None:
    """What a driven child waits for wakes the run that drives it, and no worker takes the child by itself."""
    store = MemoryStore(clock=CLOCK)
    await control.send(store, "top", "waits", False, clock=CLOCK)
    with pytest.raises(RunSuspended):
        await parent.run(store, "top")
    await control.send(store, "top/one", "paid", True, clock=CLOCK)
    assert [wakeup.run_id for wakeup in await due(store, "parent")] == ["top"]
    assert not await due(store, "order")


async def test_a_child_that_ends_by_itself_wakes_who_waits_for_it() -> None:
    """A run that waits for a child which others drive is looked at once that has ended, cancelled before it began too."""
    for ends in ("runs", "is cancelled"):
        store = MemoryStore(clock=CLOCK)
        await control.send(store, "top", "waits", True, clock=CLOCK)
        with pytest.raises(RunSuspended):
            await parent.run(store, "top")
        await store.clear_wakeups(await due(store, "parent"))
        if ends == "runs":
            await control.send(store, "top/one", "paid", True, clock=CLOCK)
            with pytest.raises(RunSuspended):
                await order.run(store, "top/one")
            await control.approve(store, "top/one", "ok", by="alice", clock=CLOCK)
            await order.run(store, "top/one")
        else:
            await control.cancel(store, "top/one", clock=CLOCK)
        assert {wakeup.run_id for wakeup in await due(store, "parent")} == {"top"}
