"""What the tests of the runner share: stores that misbehave on command, and effects that can be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from durable_core import MemoryStore, StepRecord
from durable_core.testing import FakeClock


class FlakyStore(MemoryStore):
    """Calls `before` and `after` around each append; what they raise is raised from it."""

    before: Callable[[StepRecord], Awaitable[None] | None] | None = None
    after: Callable[[StepRecord], Awaitable[None] | None] | None = None

    async def append(self, record: StepRecord) -> StepRecord:
        if self.before and (waiting := self.before(record)):
            await waiting
        holder = await super().append(record)
        if self.after and (waiting := self.after(record)):
            await waiting
        return holder


class Killed(BaseException):
    """Stands for the end of the process: nothing is recorded of it."""


class Effects(Counter[str]):
    """Counts what really happened."""

    def happen(self, name: str = "effect") -> str:
        self[name] += 1
        return name

    async def happen_async(self, name: str = "effect") -> str:
        return self.happen(name)


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def effects() -> Effects:
    return Effects()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
