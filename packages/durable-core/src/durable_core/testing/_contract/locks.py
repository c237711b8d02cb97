"""The ability to let one runner at a time work on a run, where a store has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest

from durable_core.errors import RunBusy
from durable_core.store import Lease, Store, lock_of, runs_of
from durable_core.testing._processes import Child, hold_lock
from durable_core.testing._samples import SIMILAR_IDS, OpenStore, entry

from .abilities import AbilityTests


class LockTests(AbilityTests):
    lock_expiry: float = 0.0
    """Seconds after which the lock of a killed process is free again, at the latest."""

    async def test_a_lock_keeps_others_out(self, open_store: OpenStore) -> None:
        """While a lock is held, the same store and others get `RunBusy`, which says who holds it and since when."""
        async with open_store() as store, open_store() as other:
            lock, others = self._lock(store), self._lock(other)
            async with lock("run") as lease:
                lease.check()
                for contend in (lock, others):
                    with pytest.raises(RunBusy) as refused:
                        await _take(contend, "run")
                    _tells_who(refused.value)
                lease.check()

    async def test_a_lock_is_free_after_its_holder(self, open_store: OpenStore) -> None:
        """A lock is given back when its context ends, by an exception or a cancellation too, and can be taken again and again."""
        async with open_store() as store, open_store() as other:
            lock, others = self._lock(store), self._lock(other)
            for contend in (lock, others, lock, lock, others):
                await _take(contend, "run")

            with pytest.raises(ZeroDivisionError):
                async with lock("run"):
                    raise ZeroDivisionError
            await _take(others, "run")

            held = asyncio.Event()

            async def hold() -> None:
                async with lock("run"):
                    held.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(hold())
            await held.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _take(others, "run")

    async def test_a_refused_lock_does_not_free_the_holders(self, open_store: OpenStore) -> None:
        """However often others are refused, the holder keeps its lock."""
        async with open_store() as store, open_store() as other:
            lock, others = self._lock(store), self._lock(other)
            async with lock("run") as lease:
                for contend in (others, lock) * 3:
                    with pytest.raises(RunBusy):
                        await _take(contend, "run")
                lease.check()
            await _take(others, "run")

    async def test_of_many_contenders_one_holds_the_lock(self, open_store: OpenStore) -> None:
        """Of tasks that ask at once, on several stores, never two hold the lock; all get it or `RunBusy`, and it ends free."""
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(open_store()) for _ in range(3)]
            locks = [self._lock(store) for store in stores]
            inside = won = 0

            async def contend(lock: Callable[[str], AbstractAsyncContextManager[Lease]]) -> None:
                nonlocal inside, won
                try:
                    async with lock("run"):
                        inside += 1
                        won += 1
                        for _ in range(3):
                            await asyncio.sleep(0)
                            assert inside == 1
                        inside -= 1
                except RunBusy as busy:
                    _tells_who(busy)

            await asyncio.gather(*(contend(lock) for lock in locks * 5))
            assert won
            await _take(locks[0], "run")

    async def test_locks_of_other_runs_are_free(self, open_store: OpenStore) -> None:
        """Each run has a lock of its own, however alike their ids are."""
        async with open_store() as store, AsyncExitStack() as stack:
            lock = self._lock(store)
            for run_id in SIMILAR_IDS:
                await stack.enter_async_context(lock(run_id))
            for run_id in SIMILAR_IDS:
                with pytest.raises(RunBusy):
                    await _take(lock, run_id)

    async def test_a_lock_is_no_entry(self, open_store: OpenStore) -> None:
        """A held lock shows in no log, keeps nobody from appending, and outlives the clearing of its run."""
        async with open_store() as store, open_store() as other:
            lock, others = self._lock(store), self._lock(other)
            async with lock("run") as lease:
                assert len(await other.list("run")) == 0
                if listing := runs_of(other):
                    assert [run_id async for run_id in listing.runs()] == []
                record = entry()
                assert (await other.append(record)).id == record.id
                await store.clear("run")
                assert len(await other.list("run")) == 0
                with pytest.raises(RunBusy):
                    await _take(others, "run")
                lease.check()

    async def test_names_that_are_no_runs_have_locks(self, open_store: OpenStore) -> None:
        """A worker locks names such as `$sweep`: each keeps others out, is free again after, and is the name of no run."""
        names = ("$sweep", "$limit/pdf/1", "$limit/pdf/2", "$cron/x")
        async with open_store() as store, open_store() as other:
            lock, others = self._lock(store), self._lock(other)
            for name in (*names, *names):
                async with lock(name):
                    with pytest.raises(RunBusy):
                        await _take(others, name)
                    for another in {*names} - {name}:
                        await _take(others, another)
                    if listing := runs_of(other):
                        assert [run_id async for run_id in listing.runs()] == []
            if listing := runs_of(other):
                assert [run_id async for run_id in listing.runs()] == []

    async def test_a_lock_is_kept_for_as_long_as_it_is_held(self, open_store: OpenStore) -> None:
        """A lock that would expire without its holder is renewed by it."""
        async with open_store() as store, open_store() as other:
            lock, others = self._lock(store), self._lock(other)
            if not self.lock_expiry:
                pytest.skip("lock_expiry is 0: this lock never expires")
            async with lock("run") as lease:
                await asyncio.sleep(1.5 * self.lock_expiry)
                lease.check()
                with pytest.raises(RunBusy):
                    await _take(others, "run")

    async def test_processes_keep_each_other_out(self, open_store: OpenStore) -> None:
        """A lock holds among processes, both ways, and is free for the other when it is given back."""
        async with open_store() as store:
            lock = self._lock(store)
            async with Child(hold_lock, open_store, "run") as child:
                assert await child.receive() == "held"
                with pytest.raises(RunBusy) as refused:
                    await _take(lock, "run")
                _tells_who(refused.value)
                await child.send("release")
                assert await child.receive() == "released"
                async with lock("run"), Child(hold_lock, open_store, "run") as second:
                    assert await second.receive() == "busy"

    async def test_a_killed_process_frees_its_lock(self, open_store: OpenStore) -> None:
        """When its holder dies by SIGKILL, a lock is free within `lock_expiry` seconds."""
        async with open_store() as store:
            lock = self._lock(store)
            async with Child(hold_lock, open_store, "run") as child:
                assert await child.receive() == "held"
                with pytest.raises(RunBusy):
                    await _take(lock, "run")
                await child.kill()
                deadline = monotonic() + self.lock_expiry
                while True:
                    try:
                        await _take(lock, "run")
                        return
                    except RunBusy:
                        if monotonic() > deadline:
                            raise
                    await asyncio.sleep(0.02)

    def _lock(self, store: Store) -> Callable[[str], AbstractAsyncContextManager[Lease]]:
        return self.ability(lock_of, store).lock


async def _take(lock: Callable[[str], AbstractAsyncContextManager[Lease]], run_id: str) -> None:
    async with lock(run_id) as lease:
        lease.check()


def _tells_who(busy: RunBusy) -> None:
    assert busy.run_id == "run"
    assert busy.holder
    if busy.since is not None:
        assert busy.since.tzinfo is not None
        # A server's clock may be off a little; that it tells another day is a wrong zone.
        assert abs(datetime.now(UTC) - busy.since) < timedelta(minutes=5)
