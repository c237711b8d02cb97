"""What holds for every lock that is a lease, on Redis and S3: blocked loops, dead and frozen holders, cancellations."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from durable_core import LockLost, RunBusy, StepRecord, open_store
from durable_core.store import OpenableStore, lock_of
from durable_core.testing import OpenStore
from durable_core.testing._processes import Child, Pipe, hold_lock

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["redis", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a store with nothing in it, to which options are appended with `&`."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return f"{request.getfixturevalue('ministack_server').url(uuid4().hex)}&probe=false"


def lock(store: OpenableStore, run_id: str = "run") -> Any:
    locks = lock_of(store)
    assert locks is not None
    return locks.lock(run_id)


@pytest.fixture
async def stores(url: str) -> AsyncIterator[Callable[[str], Any]]:
    """Opens stores on the same place, and closes them at the end."""
    async with AsyncExitStack() as stack:
        yield lambda options: stack.enter_async_context(open_store(f"{url}&{options}"))


async def test_a_busy_loop_does_not_lose_a_lease(stores: Callable[[str], Any]) -> None:
    """A step that never awaits keeps its run: the lease is renewed from a thread."""
    one, two = await stores("lease=1.5"), await stores("lease=1.5")
    async with lock(one) as lease:
        time.sleep(4)
        lease.check()
        with pytest.raises(RunBusy):
            async with lock(two):
                pass


async def test_the_lock_of_a_process_that_was_killed_is_taken_at_once(url: str) -> None:
    """The process is known to be gone, so nobody waits for its lease of ten minutes."""
    open_: OpenStore = partial(open_store, f"{url}&lease=600")
    async with open_() as store, Child(hold_lock, open_, "run") as child:
        assert await child.receive() == "held"
        with pytest.raises(RunBusy):
            async with lock(store):
                pass
        await child.kill()
        began = time.monotonic()
        async with lock(store) as lease:
            lease.check()
        assert time.monotonic() - began < 30


async def test_a_frozen_process_finds_its_lock_lost_at_its_first_check(url: str) -> None:
    """Stopped for longer than its lease, it wakes and starts nothing more, though nobody took the lock meanwhile."""
    open_: OpenStore = partial(open_store, f"{url}&lease=1")
    async with Child(stop_and_check, open_) as child:
        pid = await child.receive()
        async with asyncio.timeout(30):
            while os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is None:
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.2)  # what is tested is that this time passed
        os.kill(pid, signal.SIGCONT)
        assert await child.receive() == "lost"


async def stop_and_check(pipe: Pipe, open_: OpenStore) -> None:
    """Hold the lock, stop, and say whether it is still held, before the thread that renews it can run."""
    async with open_() as store, lock(store) as lease:
        await pipe.send(os.getpid())
        signal.raise_signal(signal.SIGSTOP)
        try:
            lease.check()
        except LockLost:
            await pipe.send("lost")
        else:
            await pipe.send("held")


@pytest.mark.parametrize("turns", [0, 1, 5, 20, 200])
async def test_a_scope_that_cancels_on_every_turn_can_be_left(url: str, turns: int) -> None:
    """As anyio does: taking, holding and giving back end all the same, and the run is free at once."""
    async with open_store(f"{url}&lease=600") as store:
        await store.list("run")

        async def hold() -> None:
            async with lock(store):
                await asyncio.Event().wait()

        await cancelled_on_every_turn(hold(), after=turns)
        async with lock(store) as lease:
            lease.check()


async def cancelled_on_every_turn(work: Coroutine[Any, Any, None], *, after: int) -> None:
    """Run `work` in a task that is cancelled on every turn of the loop, after so many turns, until it ends."""
    task = asyncio.create_task(work)
    async with asyncio.timeout(30):
        for _ in range(after):
            await asyncio.sleep(0)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
    assert task.cancelled()


async def test_a_host_with_a_strange_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds a lock is shown without terminal escapes, and is never said to be this process by number and host alone."""
    monkeypatch.setattr(socket, "gethostname", lambda: "web\x1b[31m\n1")
    async with open_store(url) as store, open_store(url) as other, lock(store):
        with pytest.raises(RunBusy) as busy:
            async with lock(other):
                pass
    assert busy.value.holder == rf"process {os.getpid()} on web\x1b[31m\n1"


async def test_a_thread_that_hangs_loses_its_leases(stores: Callable[[str], Any]) -> None:
    """Nobody has to tell: the lock is lost by the clock that `check` reads itself."""
    store, go_on = await stores("lease=1"), threading.Event()
    async with lock(store) as lease:
        store._leases._thread.loop.call_soon_threadsafe(go_on.wait, 30)
        with pytest.raises(LockLost, match="not renewed within 1 s"):
            while True:
                lease.check()
                await asyncio.sleep(0.01)
        go_on.set()


@pytest.mark.parametrize("turns", [0, 1, 3, 10])
async def test_calls_that_are_cancelled_on_every_turn(url: str, turns: int) -> None:
    """They can be left, and the store goes on."""
    async with open_store(url) as store:
        record = StepRecord(run_id="run", step_id="step")
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: store.append(record),
            lambda: store.get("run", "step"),
            lambda: store.list("run"),  # type: ignore[arg-type, return-value]  # a coroutine, by its name
        ]
        for call in calls:

            async def for_ever(call: Callable[[], Coroutine[Any, Any, Any]] = call) -> None:
                while True:
                    await call()

            await cancelled_on_every_turn(for_ever(), after=turns)
        assert await store.append(record) == record
        assert [*await store.list("run")] == [record]


async def test_a_store_that_is_closed_while_it_is_cancelled(url: str) -> None:
    """Closing goes on to its end, and the store can be used again."""
    store = open_store(url)

    async def use() -> None:
        async with store:
            async with lock(store):
                pass
            await asyncio.Event().wait()

    await cancelled_on_every_turn(use(), after=50)
    assert not [each for each in threading.enumerate() if "leases" in each.name]
    async with store:
        assert await store.append(StepRecord(run_id="run", step_id="step"))
