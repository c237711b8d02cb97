"""What the tests of the worker share: a store in virtual time, and looking until something is so."""

from __future__ import annotations

import pytest

from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)
