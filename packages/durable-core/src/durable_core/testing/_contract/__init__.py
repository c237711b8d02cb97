"""The contract of `durable_core.Store`, as tests."""

from __future__ import annotations

from typing import ClassVar

import pytest

from durable_core.testing._samples import OpenStore

from .abilities import AbilityTests
from .clearing import ClearTests
from .entries import EntryTests
from .flows import FlowsTests
from .holders import HolderTests
from .ids import IdTests
from .locks import LockTests
from .marks import MarksTests
from .polling import PollingTests
from .races import RaceTests
from .reading import RunsTests, ScanTests
from .slots import SlotTests
from .wakeups import WakeupTests
from .watching import WatchTests


# The last base's tests run first: what is simple before what builds on it.
class StoreTests(
    WatchTests,
    WakeupTests,
    FlowsTests,
    MarksTests,
    PollingTests,
    HolderTests,
    LockTests,
    ScanTests,
    RunsTests,
    ClearTests,
    IdTests,
    RaceTests,
    SlotTests,
    EntryTests,
    AbilityTests,
):
    """The contract of a store: subclass it in a test module, declare `abilities`, and provide the fixture `open_store`.

    `abilities` names what the store has beyond the four methods, of `runs`, `scan`, `lock`, `holder`, `polling`, `marks`,
    `flows`, `transaction`, `transact`, `wakeups` and `watch`. A named one that isn't there fails, an unnamed one that is there
    fails, and the tests of the rest are skipped.

    `open_store` returns a function without arguments whose every call gives an async context manager that opens one more store
    on the same place, which is empty when a test begins:

        class TestFileStore(StoreTests):
            abilities = frozenset({"runs", "scan", "lock"})

            @pytest.fixture
            def open_store(self, tmp_path):
                return functools.partial(durable_core.open_store, f"file:{tmp_path}")

    Some tests open the place from other processes, so the function must be one that pickle can send: one of a module, or a
    `functools.partial` of one.

    Five attributes may be overridden: `lock_expiry`, the seconds after which the lock of a killed process is free again (open
    the store with a short lease), and `long_run`, `many_runs`, `many_flows` and `many_wakeups`, the entries, runs, flows and
    wake-ups that make the backend answer in pages.

    A test that can't hold for a store is overridden in plain sight, by one that is skipped and gives the reason; there is no
    other way to leave one out:

            @pytest.mark.skip(reason="its data live in one process")
            async def test_processes_race_for_slots(self):
                '''Not for this store.'''
    """

    pytestmark: ClassVar[pytest.MarkDecorator] = pytest.mark.asyncio

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Override this with what `StoreTests` says."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `open_store`; the docstring of StoreTests shows one")


__all__ = ["StoreTests"]
