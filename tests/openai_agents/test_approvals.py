"""A tool that needs approval is an approval of the run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agents import Agent, function_tool

from durable_core import MemoryStore, Runner, RunSuspended, StepFailed, control
from durable_core.errors import Refused
from durable_core.testing import FakeClock
from durable_openai_agents import Approvals, run_agent
from tests.core.conftest import Effects

from .script import Script, call, once

REFUND = call("refund", '{"order": "1001", "amount": 90}')
ASKED = "till/1-approve-refund-call_0"


class Till:
    """A till that refunds, after a person approved; a run of it suspends at once where it waits."""

    def __init__(self, store: MemoryStore, effects: Effects, *calls: Any, needs_approval: Any = True, **options: Any) -> None:
        self.store, self.options = store, options
        self.clock = FakeClock()

        async def refund(order: str, amount: int) -> str:
            return effects.happen(f"{amount} for {order}")

        async def look() -> str:
            return effects.happen("look")

        self.model = Script(once(*(calls or (REFUND,))))
        tools: list[Any] = [function_tool(refund, needs_approval=needs_approval), function_tool(look)]
        self.agent = Agent("clerk", tools=tools, model=self.model)

    async def run(self) -> str:
        async with Runner(self.store, "run", wait_limit=0, clock=self.clock) as runner:
            result = await run_agent(runner, "till", self.agent, "Refund 1001.", tools={"refund": {**self.options}})
            return str(result.final_output)

    async def until_asked(self) -> list[str]:
        with pytest.raises(RunSuspended) as suspended:
            await self.run()
        return sorted(suspended.value.waiting_for)


async def test_a_call_is_shown_and_waits(store: MemoryStore, effects: Effects) -> None:
    """A person sees agent, tool and arguments; the tool runs once, after the approval, and the model is asked once a turn."""
    till = Till(store, effects, REFUND, call("look", call_id="call_1"))
    assert await till.until_asked() == [ASKED]
    assert effects == {"look": 1}
    (waiting,) = [record async for record in control.pending(store)]
    assert waiting.name == "may refund be called"
    assert waiting.notes["show"] == {"agent": "clerk", "tool": "refund", "arguments": {"order": "1001", "amount": 90}}
    await till.until_asked()
    await control.approve(store, "run", ASKED, by="alice")
    for _ in range(2):
        assert await till.run() == "done: look, 90 for 1001"
    assert effects == {"look": 1, "90 for 1001": 1}
    assert len(till.model.asked) == 2


async def test_a_reason_reaches_the_model(store: MemoryStore, effects: Effects) -> None:
    """A rejected call is not made, and the model reads why."""
    till = Till(store, effects)
    await till.until_asked()
    await control.reject(store, "run", ASKED, by="alice", reason="paid twice already")
    assert await till.run() == "done: The call was rejected: paid twice already"
    assert not effects


async def test_a_person_may_change_the_arguments(store: MemoryStore, effects: Effects) -> None:
    """What the person gave as `value` replaces the arguments, on replays too; what is no object makes no call."""
    till = Till(store, effects)
    await till.until_asked()
    await control.approve(store, "run", ASKED, by="alice", value={"order": "1001", "amount": 45})
    for _ in range(2):
        assert await till.run() == "done: 45 for 1001"
    assert effects == {"45 for 1001": 1}


async def test_a_change_that_is_no_arguments_makes_no_call(store: MemoryStore, effects: Effects) -> None:
    """A decision can't be taken back: with a value that is no object, the call is not made, and the model reads so."""
    till = Till(store, effects)
    await till.until_asked()
    await control.approve(store, "run", ASKED, by="alice", value=45)
    assert "so it was not made" in await till.run()
    assert not effects


async def test_two_calls_wait_at_once(store: MemoryStore, effects: Effects) -> None:
    """All calls of one turn are asked about together, and decided in any order."""
    second = call("refund", '{"order": "1002", "amount": 7}', "call_1")
    till = Till(store, effects, REFUND, second)
    other = "till/1-approve-refund-call_1"
    assert await till.until_asked() == [ASKED, other]
    await control.approve(store, "run", other, by="alice")
    assert await till.until_asked() == [ASKED]
    await control.reject(store, "run", ASKED, by="bob")
    assert await till.run() == "done: The call was rejected., 7 for 1002"
    assert effects == {"7 for 1002": 1}


async def test_two_people_of_those_who_may(store: MemoryStore, effects: Effects) -> None:
    """Quorum and approvers hold, and a tool that has them needs approval though it doesn't say so."""
    till = Till(store, effects, needs_approval=False, approvals=Approvals(quorum=2, approvers=["alice", "bob", "carol"]))
    await till.until_asked()
    with pytest.raises(Refused, match="may not decide"):
        await control.approve(store, "run", ASKED, by="mallory")
    await control.approve(store, "run", ASKED, by="alice")
    assert await till.until_asked() == [ASKED]
    await control.approve(store, "run", ASKED, by="bob")
    assert await till.run() == "done: 90 for 1001"


@pytest.mark.parametrize("on_timeout", ["reject", "fail"])
async def test_a_deadline(store: MemoryStore, effects: Effects, on_timeout: Any) -> None:
    """Nobody decided: the model reads so, or the run fails."""
    till = Till(store, effects, approvals=Approvals(timeout=60, on_timeout=on_timeout))
    await till.until_asked()
    till.clock.advance(61)
    if on_timeout == "reject":
        assert "nobody decided" in await till.run()
    else:
        with pytest.raises(StepFailed) as failed:
            await till.run()
        assert failed.value.error.matches(TimeoutError)
    assert not effects


async def test_a_tool_says_which_calls_need_approval(store: MemoryStore, effects: Effects) -> None:
    """A threshold of the tool's own stands, also beside `Approvals`."""

    async def is_large(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
        return int(arguments["amount"]) > 50

    small = call("refund", json.dumps({"order": "1002", "amount": 7}), "call_1")
    till = Till(store, effects, REFUND, small, needs_approval=is_large, approvals=Approvals())
    assert await till.until_asked() == [ASKED]
    assert effects == {"7 for 1002": 1}


def test_wrong_approvals_are_refused() -> None:
    """A quorum out of reach, one name for several, and an unknown ending are errors at once."""
    with pytest.raises(ValueError, match="quorum must be from 1 to 1"):
        Approvals(quorum=2, approvers=["alice"])
    with pytest.raises(TypeError, match="not one text"):
        Approvals(approvers="alice")
    with pytest.raises(ValueError, match="on_timeout must be"):
        Approvals(on_timeout="ignore")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole number"):
        Approvals(quorum=True)
