"""`MemoryStore` keeps the contract of a store."""

import pytest

from durable_core.stores.memory import MemoryStore
from durable_core.testing import OpenStore, StoreTests


class TestMemoryStore(StoreTests):
    abilities = frozenset({"runs", "lock", "holder", "polling", "flows", "wakeups", "watch"})

    @pytest.fixture
    def open_store(self) -> OpenStore:
        place = MemoryStore()
        return lambda: place

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_processes_race_for_slots(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_processes_keep_each_other_out(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="its lock ends with the only process that knows it")
    async def test_a_killed_process_frees_its_lock(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_a_process_that_holds_a_lock_is_told(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_flows_of_several_processes_are_found(self) -> None:
        """Not for this store."""

    @pytest.mark.skip(reason="a dictionary is not shared between processes")
    async def test_processes_race_for_wakeups(self) -> None:
        """Not for this store."""
