"""What the tests of agents share: no trace that leaves the process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents.tracing import get_trace_provider

from durable_core import MemoryStore
from tests.core.conftest import Effects, effects

__all__ = [
    "Effects",
    "effects",
]


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    provider = get_trace_provider()
    provider.set_disabled(True)
    yield
    provider.set_disabled(False)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()
