"""A tool that needs approval is an approval of the run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agents import Agent, HostedMCPTool, function_tool
from openai.types.responses.response_output_item import McpApprovalRequest

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
    assert waiting.notes["show"] == {"agent": "clerk", "tool": "refund", "edit": {"order": "1001", "amount": 90}}
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


@pytest.mark.parametrize("values", [(None, {"amount": 9000}), ({"amount": 1}, {"amount": 2})])
async def test_one_of_two_people_cannot_change_what_the_other_approved(
    store: MemoryStore, effects: Effects, values: tuple[Any, Any]
) -> None:
    """Arguments that only one of them approved are not approved yet."""
    till = Till(store, effects, approvals=Approvals(quorum=2))
    await till.until_asked()
    for name, value in zip(("alice", "bob"), values, strict=True):
        await control.approve(store, "run", ASKED, by=name, value=value and {"order": "1001", **value})
    assert await till.until_asked() == [ASKED]
    assert not effects


async def test_two_people_change_the_arguments_alike(store: MemoryStore, effects: Effects) -> None:
    """Then both have approved what is done."""
    till = Till(store, effects, approvals=Approvals(quorum=2))
    await till.until_asked()
    for name in ("alice", "bob"):
        await control.approve(store, "run", ASKED, by=name, value={"order": "1001", "amount": 45})
    assert await till.run() == "done: 45 for 1001"


async def test_changed_arguments_that_the_tool_cannot_take(store: MemoryStore, effects: Effects) -> None:
    """The tool isn't called, the model is told as of bad arguments of its own, and on a replay it is the same."""
    till = Till(store, effects)
    await till.until_asked()
    await control.approve(store, "run", ASKED, by="alice", value={"order": "1001", "amount": "lots"})
    for _ in range(2):
        assert "An error occurred while running the tool" in await till.run()
    assert not effects


async def test_arguments_of_what_the_provider_calls_cannot_be_changed(store: MemoryStore) -> None:
    """A tool that the provider runs is approved as it is, or not: with other arguments no call is made."""

    def answers(items: list[dict[str, Any]]) -> list[Any]:
        answered = [item for item in items if item.get("type") == "mcp_approval_response"]
        return [json.dumps(answered[0]["approve"])] if answered else [request]

    request = McpApprovalRequest(
        type="mcp_approval_request", id="mcpr_1", name="pay", arguments='{"amount": 9}', server_label="bank"
    )
    config: Any = {"type": "mcp", "server_label": "bank", "server_url": "https://bank.invalid", "require_approval": "always"}
    agent = Agent("clerk", tools=[HostedMCPTool(tool_config=config)], model=Script(answers))
    for run_id, value in (("run-1", None), ("run-2", {"amount": 1})):
        with pytest.raises(RunSuspended):
            async with Runner(store, run_id, wait_limit=0) as runner:
                await run_agent(runner, "till", agent, "Pay.")
        await control.approve(store, run_id, "till/1-approve-pay-mcpr_1", by="alice", value=value)
        async with Runner(store, run_id, wait_limit=0) as runner:
            result = await run_agent(runner, "till", agent, "Pay.")
        assert result.final_output == ("true" if value is None else "false")


async def test_one_call_fails_while_another_waits(store: MemoryStore, effects: Effects) -> None:
    """The run fails before anybody is asked; mended and retried it asks, and the call that was approved is made."""
    till = Till(store, effects, REFUND, call("look", call_id="call_1"))

    async def look() -> str:
        if effects.happen("look") and effects["look"] == 1:
            raise ConnectionError("away")
        return "found"

    till.agent.tools[1] = function_tool(look, failure_error_function=None)
    with pytest.raises(StepFailed, match="away"):
        await till.run()
    assert [record async for record in control.pending(store)] == []
    await control.retry(store, "run", "till/1-look-call_1")
    await till.until_asked()
    await control.approve(store, "run", ASKED, by="alice")
    for _ in range(2):
        assert await till.run() == "done: found, 90 for 1001"
    assert effects == {"look": 2, "90 for 1001": 1}


@pytest.mark.parametrize(
    ("approvals", "message"),
    [
        ({"quorum": 2, "approvers": ["alice"]}, "quorum must be at least 1 and at most 1"),
        ({"approvers": "alice"}, "not one str"),
        ({"on_timeout": "ignore"}, "on_timeout must be"),
        ({"quorum": True}, "whole number"),
        ({"quorom": 2}, "did you mean 'quorum'"),
        (2, r"must be a dict, such as Approvals\(quorum=2\), not 2"),
    ],
)
async def test_approvals_that_cannot_be(store: MemoryStore, effects: Effects, approvals: Any, message: str) -> None:
    """They are refused before anything runs, and the error names the tool."""
    till = Till(store, effects, approvals=approvals)
    with pytest.raises((TypeError, ValueError), match=rf"tools\['refund'\]: .*{message}"):
        await till.run()
    assert till.model.asked == []
