"""The ability to say when to look at a run again, where a store has it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest

from durable_core.store import SupportsWakeups, WakeUp, wakeups_of
from durable_core.testing._processes import Child, Pipe
from durable_core.testing._samples import HOSTILE_IDS, OpenStore

from .abilities import AbilityTests

_LONG = timedelta(minutes=10)
_SECONDS = 60


class WakeupTests(AbilityTests):
    many_wakeups: int = 300
    """How many wake-ups make the backend answer in pages."""

    async def test_a_wakeup_is_told_as_it_was_set(self, open_store: OpenStore) -> None:
        """Setting returns the run, its flow, the time and the store's clock; taking returns the same, from anywhere."""
        async with open_store() as store, open_store() as other:
            at = datetime.now(UTC) - timedelta(seconds=5, microseconds=1)
            mine = await self.ability(wakeups_of, store).set_wakeup("run", "flow", at)
            assert (mine.run_id, mine.flow, mine.at) == ("run", "flow", at)
            assert abs(mine.now - datetime.now(UTC)) < timedelta(minutes=1)
            (taken,) = await _take(self.ability(wakeups_of, other))
            assert (taken.run_id, taken.flow, taken.at, taken.token) == ("run", "flow", at, mine.token)
            assert mine.now <= taken.now < mine.now + timedelta(minutes=1)

    async def test_a_wakeup_shows_when_it_is_due(self, open_store: OpenStore) -> None:
        """One for later is not taken before its time, and one that is due is."""
        async with open_store() as store:
            wakeups = self.ability(wakeups_of, store)
            later = await wakeups.set_wakeup("later", "flow", datetime.now(UTC) + timedelta(hours=1))
            soon = await wakeups.set_wakeup("soon", "flow", datetime.now(UTC) + timedelta(seconds=0.3))
            (taken,) = await _take_soon(wakeups)
            assert taken.token == soon.token
            assert taken.now >= soon.at
            assert not await _take(wakeups)
            await wakeups.clear_wakeups([taken, later])

    async def test_a_time_without_a_zone_is_refused(self, open_store: OpenStore) -> None:
        """Nobody knows when that is; wake-ups that are there are taken as before."""
        async with open_store() as store:
            wakeups = self.ability(wakeups_of, store)
            now = datetime.now(UTC)
            await wakeups.set_wakeup("run", "flow", now)
            with pytest.raises(ValueError, match="zone"):
                await wakeups.set_wakeup("run", "flow", now.replace(tzinfo=None))
            assert [each.at for each in await _take_soon(wakeups)] == [now]

    async def test_those_due_longest_come_first(self, open_store: OpenStore) -> None:
        """Of many that are due those with the earliest time are taken, whatever the order in which they were set, and flows."""
        async with open_store() as store:
            wakeups = self.ability(wakeups_of, store)
            start = datetime.now(UTC) - timedelta(hours=1)
            for number in (7, 3, 9, 1, 5, 0, 8, 2, 6, 4):
                await wakeups.set_wakeup(f"run {number}", f"flow {number % 3}", start + timedelta(seconds=number))
            flows = ["flow 0", "flow 1", "flow 2"]
            taken = [await wakeups.take_wakeups(flows, limit=3, visibility_timeout=_LONG) for _ in range(5)]
            assert [len(each) for each in taken] == [3, 3, 3, 1, 0]
            assert [each.run_id for part in taken for each in part] == [f"run {number}" for number in range(10)]

    async def test_only_wakeups_of_the_flows_asked_for_are_taken(self, open_store: OpenStore) -> None:
        """A worker gets no wake-up of a flow that it doesn't have, however old that is; without flows it gets none."""
        async with open_store() as store:
            wakeups = self.ability(wakeups_of, store)
            long_ago = datetime.now(UTC) - timedelta(days=400)
            for flow in HOSTILE_IDS:
                await wakeups.set_wakeup("run", flow, long_ago)
            for flow in HOSTILE_IDS[::17]:
                assert [each.flow for each in await _take(wakeups, [flow])] == [flow]
            assert not await _take(wakeups, [])
            assert not await _take(wakeups, ["no such flow"])

    async def test_ids_come_back_as_they_were(self, open_store: OpenStore) -> None:
        """Wake-ups of runs with strange ids are kept apart, and told with the same ids."""
        async with open_store() as store, open_store() as other:
            wakeups = self.ability(wakeups_of, store)
            now = datetime.now(UTC) - timedelta(seconds=1)
            await asyncio.gather(*(wakeups.set_wakeup(run_id, "flow", now) for run_id in HOSTILE_IDS))
            taken = await _take(self.ability(wakeups_of, other), limit=1000)
            assert sorted(each.run_id for each in taken) == sorted(HOSTILE_IDS)

    async def test_a_run_may_have_several(self, open_store: OpenStore) -> None:
        """Each wake-up stands for itself: two of one run, for the same moment too, are two, and clearing one leaves the other."""
        async with open_store() as store:
            wakeups = self.ability(wakeups_of, store)
            now = datetime.now(UTC) - timedelta(seconds=1)
            one, two = await wakeups.set_wakeup("run", "flow", now), await wakeups.set_wakeup("run", "flow", now)
            assert one.token != two.token
            await wakeups.clear_wakeups([one])
            assert [each.token for each in await _take(wakeups)] == [two.token]

    async def test_a_taken_wakeup_is_hidden_and_shown_again(self, open_store: OpenStore) -> None:
        """Nobody gets it within the visibility timeout; after that it comes again, with its token, until it is cleared."""
        async with open_store() as store, open_store() as other:
            wakeups, others = self.ability(wakeups_of, store), self.ability(wakeups_of, other)
            assert not await _take(others)  # it has connected
            mine = await wakeups.set_wakeup("run", "flow", datetime.now(UTC) - timedelta(seconds=1))
            hidden = timedelta(seconds=1)
            (taken,) = await wakeups.take_wakeups(["flow"], limit=9, visibility_timeout=hidden)
            (again,) = await _take_soon(others)
            assert (again.token, again.run_id, again.at) == (mine.token, mine.run_id, mine.at)
            assert again.now >= taken.now + hidden
            assert not await _take(wakeups)
            await wakeups.clear_wakeups([taken])  # by who had it first
            assert not await _take(others)

    async def test_a_cleared_wakeup_is_gone(self, open_store: OpenStore) -> None:
        """Cleared before it was due, hidden, or due: it doesn't come again; clearing it twice does nothing."""
        async with open_store() as store, open_store() as other:
            wakeups = self.ability(wakeups_of, store)
            now = datetime.now(UTC)
            early = await wakeups.set_wakeup("early", "flow", now + timedelta(seconds=0.2))
            due = await wakeups.set_wakeup("due", "flow", now - timedelta(seconds=1))
            await wakeups.clear_wakeups([due, early])
            await wakeups.set_wakeup("hidden", "flow", now - timedelta(seconds=1))
            (hidden,) = await wakeups.take_wakeups(["flow"], limit=9, visibility_timeout=timedelta(seconds=0.1))
            await self.ability(wakeups_of, other).clear_wakeups([hidden])
            await wakeups.clear_wakeups([hidden, due, early])
            await wakeups.clear_wakeups([])
            last = await wakeups.set_wakeup("last", "flow", now + timedelta(seconds=0.6))
            assert [each.token for each in await _take_soon(wakeups)] == [last.token]

    async def test_a_wakeup_outlives_who_set_it(self, open_store: OpenStore) -> None:
        """What was set is there for a store that is opened after the first one was closed."""
        async with open_store() as store:
            mine = await self.ability(wakeups_of, store).set_wakeup("run", "flow", datetime.now(UTC) - timedelta(seconds=1))
        async with open_store() as store:
            assert [each.token for each in await _take(self.ability(wakeups_of, store))] == [mine.token]

    async def test_clearing_a_run_leaves_its_wakeups(self, open_store: OpenStore) -> None:
        """A wake-up of a run that is not there any more comes all the same: who takes it clears it."""
        async with open_store() as store:
            wakeups = self.ability(wakeups_of, store)
            await wakeups.set_wakeup("run", "flow", datetime.now(UTC) - timedelta(seconds=1))
            await store.clear("run")
            assert len(await _take(wakeups)) == 1

    async def test_wakeups_are_no_entries(self, open_store: OpenStore) -> None:
        """A run of which there is but a wake-up has no log."""
        async with open_store() as store:
            await self.ability(wakeups_of, store).set_wakeup("run", "flow", datetime.now(UTC))
            assert [*await store.list("run")] == []

    async def test_many_are_taken_once_each(self, open_store: OpenStore) -> None:
        """Stores that take at the same time share what is due: each wake-up goes to one of them, and none is left."""
        async with AsyncExitStack() as stack:
            stores = [self.ability(wakeups_of, await stack.enter_async_context(open_store())) for _ in range(3)]
            now = datetime.now(UTC) - timedelta(seconds=1)
            runs = [f"run {number}" for number in range(self.many_wakeups)]
            await asyncio.gather(*(stores[0].set_wakeup(run_id, "flow", now) for run_id in runs))
            parts = await asyncio.gather(*(_drain(wakeups, 7) for wakeups in stores))
            assert sorted(each.run_id for part in parts for each in part) == sorted(runs)
            await stores[1].clear_wakeups(parts[0])
            assert not await _take(stores[2])

    async def test_processes_race_for_wakeups(self, open_store: OpenStore) -> None:
        """Of eight processes that take at the same moment each gets its own, and together they get all."""
        async with open_store() as store:
            wakeups = self.ability(wakeups_of, store)
            now = datetime.now(UTC) - timedelta(seconds=1)
            runs = [f"run {number}" for number in range(200)]
            await asyncio.gather(*(wakeups.set_wakeup(run_id, "flow", now) for run_id in runs))
            async with AsyncExitStack() as stack:
                children = await asyncio.gather(*(stack.enter_async_context(Child(_take_all, open_store)) for _ in range(8)))
                for child in children:
                    assert await child.receive() == "ready"
                for child in children:
                    await child.send("go")
                taken = [run_id for child in children for run_id in await child.receive()]
            assert sorted(taken) == sorted(runs)


async def _take(wakeups: SupportsWakeups, flows: Sequence[str] = ("flow",), limit: int = 100) -> Sequence[WakeUp]:
    return await wakeups.take_wakeups(flows, limit=limit, visibility_timeout=_LONG)


async def _take_soon(wakeups: SupportsWakeups) -> Sequence[WakeUp]:
    """Take as soon as there is something to take."""
    deadline = monotonic() + _SECONDS
    while not (taken := await _take(wakeups)):
        assert monotonic() < deadline, "nothing was shown in time"
        await asyncio.sleep(0.01)
    return taken


async def _drain(wakeups: SupportsWakeups, limit: int) -> list[WakeUp]:
    """Take until there was nothing more for a while: others may hold back what they are just taking."""
    found: list[WakeUp] = []
    empty = 0
    while empty < 5:
        taken = await _take(wakeups, limit=limit)
        found.extend(taken)
        empty = 0 if taken else empty + 1
    return found


async def _take_all(pipe: Pipe, open_store: OpenStore) -> None:
    """Take all wake-ups when told to; send their runs."""
    async with open_store() as store:
        wakeups = wakeups_of(store)
        assert wakeups
        await wakeups.take_wakeups(["no such flow"], limit=1, visibility_timeout=_LONG)  # connect first
        await pipe.send("ready")
        await pipe.receive()
        await pipe.send([each.run_id for each in await _drain(wakeups, 10)])
