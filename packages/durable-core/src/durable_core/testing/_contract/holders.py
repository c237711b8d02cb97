"""The ability to tell who holds a run's lock, where a store has it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from time import monotonic

from durable_core.store import Holder, holder_of, lock_of
from durable_core.testing._processes import Child, hold_lock
from durable_core.testing._samples import SIMILAR_IDS, OpenStore

from .locks import LockTests


class HolderTests(LockTests):
    async def test_nobody_holds_a_free_lock(self, open_store: OpenStore) -> None:
        """Of a run that nobody holds, with entries or without, there is no holder."""
        async with open_store() as store:
            reader = self.ability(holder_of, store)
            assert await reader.holder("run") is None
            assert dict(await reader.holders(["run", "another"])) == {}
            assert dict(await reader.holders([])) == {}

    async def test_the_holder_of_a_lock_is_told(self, open_store: OpenStore) -> None:
        """While a lock is held, the same store and others tell who holds it and since when."""
        async with open_store() as store, open_store() as other:
            reader, others = self.ability(holder_of, store), self.ability(holder_of, other)
            async with self.ability(lock_of, store).lock("run"):
                for read in (reader, others):
                    _tells_who(await read.holder("run"))

    async def test_nobody_holds_a_lock_that_was_given_back(self, open_store: OpenStore) -> None:
        """As soon as a lock is free, by an error too, nobody is told to hold it."""
        async with open_store() as store, open_store() as other:
            lock = self.ability(lock_of, store).lock
            readers = self.ability(holder_of, store), self.ability(holder_of, other)
            for error in (None, ZeroDivisionError()):
                try:
                    async with lock("run"):
                        if error:
                            raise error
                except ZeroDivisionError:
                    pass
                for reader in readers:
                    assert await reader.holder("run") is None
                    assert dict(await reader.holders(["run"])) == {}

    async def test_holders_names_only_runs_that_are_held(self, open_store: OpenStore) -> None:
        """Of many runs, those that are held and no other are named, however alike their ids are."""
        async with open_store() as store, open_store() as other, AsyncExitStack() as stack:
            lock, reader = self.ability(lock_of, store).lock, self.ability(holder_of, other)
            held = SIMILAR_IDS[::2]
            for run_id in held:
                await stack.enter_async_context(lock(run_id))
            holders = await reader.holders([*SIMILAR_IDS, held[0]])
            assert holders.keys() == set(held)
            for holder in holders.values():
                _tells_who(holder)
            assert await reader.holder(SIMILAR_IDS[1]) is None

    async def test_asking_who_holds_a_lock_does_not_take_it(self, open_store: OpenStore) -> None:
        """However often somebody asks, the lock can be taken meanwhile, and is kept."""
        async with open_store() as store, open_store() as other:
            lock, reader = self.ability(lock_of, store).lock, self.ability(holder_of, other)
            asking = True

            async def ask() -> None:
                while asking:
                    await reader.holder("run")
                    await reader.holders(["run"])
                    await asyncio.sleep(0)  # a store may answer without ever waiting

            askers = [asyncio.create_task(ask()) for _ in range(3)]
            try:
                for _ in range(20):
                    async with lock("run") as lease:
                        await asyncio.sleep(0)
                        lease.check()
                    await asyncio.sleep(0)
            finally:
                asking = False
                await asyncio.gather(*askers)
            assert await reader.holder("run") is None

    async def test_a_process_that_holds_a_lock_is_told(self, open_store: OpenStore) -> None:
        """A holder in another process is told, until it gives the lock back, or dies and `lock_expiry` seconds have passed."""
        async with open_store() as store:
            reader = self.ability(holder_of, store)
            async with Child(hold_lock, open_store, "run") as child:
                assert await child.receive() == "held"
                _tells_who(await reader.holder("run"))
                assert [*await reader.holders(["run", "another"])] == ["run"]
                await child.send("release")
                assert await child.receive() == "released"
                assert await reader.holder("run") is None
            async with Child(hold_lock, open_store, "run") as child:
                assert await child.receive() == "held"
                await child.kill()
                deadline = monotonic() + self.lock_expiry
                while await reader.holder("run") is not None:
                    assert monotonic() < deadline, f"a killed process is told to hold the lock after {self.lock_expiry} s"
                    await asyncio.sleep(0.02)


def _tells_who(holder: Holder | None) -> None:
    assert holder is not None
    assert holder.name
    if holder.since is not None:
        assert holder.since.tzinfo is not None
        # A server's clock may be off a little; that it tells another day is a wrong zone.
        assert abs(datetime.now(UTC) - holder.since) < timedelta(minutes=5)
