"""A run of two agents, killed at every append, on every store."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic_ai import Agent

from durable_core import Runner, RunSuspended, StepInterrupted, Store, control, flow
from durable_pydantic_ai import Durability, run_agent
from tests.every_store.conftest import Opened
from tests.every_store.killing import Act, World, everywhere
from tests.pydantic_ai.conftest import call, scripted

ASK = "triage/approve-refund-1-call_2"
EFFECTS = {
    "triage/model-1": "triage-1",
    "triage/look_up-1-call_0": "look_up",
    "triage/weigh-1-call_1": "weigh",
    "triage/refund-1-call_2": "refund",
    "triage/model-2": "triage-2",
    "letter/model-1": "writer-1",
}
AT_ONCE = {"triage/look_up-1-call_0", "triage/weigh-1-call_1"}


def two_agents(world: World) -> Sequence[Act]:
    """An agent that calls two tools at once and one that a person approves; then an agent that writes about it."""

    def model(name: str, *turns: Sequence[object] | str) -> object:
        return scripted(*turns, asked=world.effects, name=name)  # type: ignore[arg-type]

    calls = [call("look_up", "call_0", order="A-1"), call("weigh", "call_1", order="A-1"), call("refund", "call_2", amount=90)]
    triage = Agent(model("triage", calls, "refunded"), name="triage", capabilities=[Durability()])  # type: ignore[call-overload]
    writer = Agent(model("writer", "Dear customer"), name="writer", capabilities=[Durability()])  # type: ignore[call-overload]

    @triage.tool_plain
    async def look_up(order: str) -> str:
        return world.effects.happen("look_up")

    @triage.tool_plain
    def weigh(order: str) -> str:
        return world.effects.happen("weigh")

    @triage.tool_plain(requires_approval=True, metadata={"durable": {"at_most_once": True}})
    async def refund(amount: int) -> str:
        world.effects.happen("refund")
        return f"refunded {amount}"

    @flow(clock=world.clock, wait_limit=0)
    async def support(runner: Runner) -> str:
        first = await run_agent(runner, "triage", triage, "I want my money back")
        second = await run_agent(runner, "letter", writer, first.output)
        return f"{first.output}: {second.output}"

    async def begin(store: Store) -> None:
        with pytest.raises(RunSuspended):
            await support.run(store, run_id=world.run_id)

    async def approve(store: Store) -> None:
        await control.approve(store, world.run_id, ASK, by="ann", clock=world.clock)

    async def end(store: Store) -> None:
        try:
            assert await support.run(store, run_id=world.run_id) == "refunded: Dear customer"
        except StepInterrupted:
            # The refund may have been made or not: a person looked, and says that it was not.
            await control.retry(store, world.run_id, "triage/refund-1-call_2", by="ann", clock=world.clock)
            assert await support.run(store, run_id=world.run_id) == "refunded: Dear customer"

    return [Act(begin, "waiting"), Act(approve), Act(end)]


async def test_two_agents_killed_at_every_append(opened: Opened) -> None:
    """Nothing that is recorded happens again: each request and each tool once, or in flight when the process died."""
    async with opened() as store:
        lives = await everywhere(two_agents, store)
    async with opened() as other:
        for lived in lives:
            world = lived.world
            entries = await other.list(world.run_id)
            for step, effect in EFFECTS.items():
                assert [r.status for r in entries if r.step_id == step][-1] == "success", (step, lived.met)
                was_in_flight = lived.may_repeat(step) or (step in AT_ONCE and lived.met[2:] != () and lived.met[2] in AT_ONCE)
                assert 1 <= world.effects[effect] <= 1 + was_in_flight, (step, lived.at, lived.when, lived.met)
