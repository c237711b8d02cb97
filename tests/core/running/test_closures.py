"""A variable that moved on is noticed whenever a function is about to be called."""

from __future__ import annotations

import asyncio

import pytest

from durable_core import MemoryStore, Recovered, Runner, StepRecord, StepReused
from tests.core.conftest import FlakyStore


async def test_a_lambda_is_compared_before_each_attempt() -> None:
    """The second attempt would act on another item."""
    charged: list[str] = []
    name, failed = "alice", asyncio.Event()

    async def charge(whom: str) -> str:
        charged.append(whom)
        failed.set()
        raise ConnectionError

    step = asyncio.ensure_future(
        Runner(MemoryStore(), "run").step("charge-alice", lambda: charge(name), max_attempts=2, retry_delay=0.01)
    )
    await failed.wait()
    name = "bob"
    with pytest.raises(StepReused, match="lambda name=name"):
        await step
    assert charged == ["alice"]


async def test_what_recover_closes_over_is_compared_too() -> None:
    """It would look for another item's charge."""
    store = MemoryStore()
    await store.append(StepRecord(run_id="run", step_id="charge-alice", status="started"))
    name = "alice"

    async def charge() -> str:
        raise AssertionError

    async with Runner(store, "run") as runner:
        step = runner.step("charge-alice", charge, at_most_once=True, recover=lambda: Recovered(f"receipt of {name}"))
        name = "bob"
        with pytest.raises(StepReused, match="'name'"):
            await step


async def test_a_variable_that_moves_while_the_intent_is_recorded_interrupts_nothing() -> None:
    """Nothing was done, and the next run may do it."""
    store, name, charged = FlakyStore(), "alice", list[str]()

    async def charge(whom: str) -> str:
        charged.append(whom)
        return whom

    async def move(record: StepRecord) -> None:
        nonlocal name
        name = "bob"

    store.after = move
    async with Runner(store, "run") as runner:
        with pytest.raises(StepReused):
            await runner.step("charge-alice", lambda: charge(name), at_most_once=True)
    store.after = None
    assert charged == []
    async with Runner(store, "run") as runner:
        assert await runner.step("charge-alice", charge, "alice", at_most_once=True) == "alice"
