"""Tool calls that people decide on, and those whose results come from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from pydantic_ai import Agent, ApprovalRequired, CallDeferred, FunctionToolset, RunContext, Tool
from pydantic_ai.capabilities import RequestInput
from pydantic_ai.messages import ModelMessage, ToolCallPart
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDefinition
from pydantic_ai.toolsets import DynamicToolset, ExternalToolset

from durable_core import MemoryStore, Refused, Runner, RunSuspended, StepFailed, control
from durable_core.testing import FakeClock
from durable_pydantic_ai import Approvals, Durability, run_agent
from tests.pydantic_ai.conftest import call, scripted, told

ASK = "pay/approve-refund-1-call_0"


class Desk:
    """An agent that wants to refund, and what came of it."""

    def __init__(self, memory: MemoryStore, *calls: ToolCallPart, **metadata: Any) -> None:
        self.memory, self.clock = memory, FakeClock()
        self.refunds: list[int] = []
        self.messages: Sequence[ModelMessage] = ()
        turn = calls or (call("refund", amount=90),)
        self.agent = Agent(scripted(turn, "done"), name="desk", capabilities=[Durability()])

        @self.agent.tool_plain(requires_approval=True, metadata={"durable": metadata} if metadata else None)
        def refund(amount: int) -> str:
            self.refunds.append(amount)
            return f"refunded {amount}"

    async def run(self) -> list[Any]:
        """Run the agent, and return what its tools told the model. Raises `RunSuspended` while people are waited for."""
        async with Runner(self.memory, "desk", wait_limit=0, clock=self.clock) as runner:
            result = await run_agent(runner, "pay", self.agent, "please")
        self.messages = result.all_messages()
        return told(self.messages)

    async def ask(self) -> list[str]:
        """Run the agent until it waits, and return what is asked."""
        with pytest.raises(RunSuspended):
            await self.run()
        return [record.step_id async for record in control.pending(self.memory)]


async def test_a_call_that_is_approved_is_made(memory: MemoryStore) -> None:
    """A person sees the tool and its arguments; the call is made once, on a replay not again."""
    desk = Desk(memory)
    assert await desk.ask() == [ASK]
    assert desk.refunds == []
    asked = await memory.get("desk", ASK)
    assert asked is not None
    assert asked.note["show"] == {"tool": "refund", "edit": {"amount": 90}}
    await control.approve(memory, "desk", ASK, by="ann", clock=desk.clock)
    assert await desk.run() == ["refunded 90"]
    assert await desk.run() == ["refunded 90"]
    assert desk.refunds == [90]


async def test_a_rejection_is_told_to_the_model(memory: MemoryStore) -> None:
    """The reason that the person gave is what the model is told, and the tool isn't called."""
    desk = Desk(memory)
    await desk.ask()
    await control.reject(memory, "desk", ASK, by="ann", reason="the order is a year old", clock=desk.clock)
    assert await desk.run() == ["The call was rejected: the order is a year old"]
    assert desk.refunds == []


async def test_a_person_edits_the_arguments(memory: MemoryStore) -> None:
    """The tool is called with the arguments that the person gave, whole, in place of the model's."""
    desk = Desk(memory)
    await desk.ask()
    await control.approve(memory, "desk", ASK, by="ann", value={"amount": 45}, clock=desk.clock)
    assert await desk.run() == ["refunded 45"]
    assert desk.refunds == [45]


async def test_arguments_that_are_no_object(memory: MemoryStore) -> None:
    """A decision can't be taken back, so the call is not made rather than made as nobody meant it."""
    desk = Desk(memory)
    await desk.ask()
    await control.approve(memory, "desk", ASK, by="ann", value=45, clock=desk.clock)
    [said] = await desk.run()
    assert "was not made" in said
    assert desk.refunds == []


async def test_two_people_of_three(memory: MemoryStore) -> None:
    """The tool's own metadata says how many, and who."""
    desk = Desk(memory, approvals=Approvals(quorum=2, approvers=("ann", "bob", "eve")), at_most_once=True)
    await desk.ask()
    with pytest.raises(Refused):
        await control.approve(memory, "desk", ASK, by="mallory", clock=desk.clock)
    await control.approve(memory, "desk", ASK, by="ann", clock=desk.clock)
    assert await desk.ask() == [ASK]
    await control.approve(memory, "desk", ASK, by="eve", clock=desk.clock)
    assert await desk.run() == ["refunded 90"]


@pytest.mark.parametrize("values", [(None, {"amount": 9000}), ({"amount": 1}, {"amount": 2})])
async def test_one_of_two_people_cannot_change_what_the_other_approved(memory: MemoryStore, values: tuple[Any, Any]) -> None:
    """Arguments that only one of them approved are not approved yet."""
    desk = Desk(memory, approvals=Approvals(quorum=2))
    await desk.ask()
    for name, value in zip(("ann", "bob"), values, strict=True):
        await control.approve(memory, "desk", ASK, by=name, value=value, clock=desk.clock)
    assert await desk.ask() == [ASK]
    assert desk.refunds == []


async def test_two_people_edit_the_arguments_alike(memory: MemoryStore) -> None:
    """Then both have approved what is done."""
    desk = Desk(memory, approvals=Approvals(quorum=2))
    await desk.ask()
    for name in ("ann", "bob"):
        await control.approve(memory, "desk", ASK, by=name, value={"amount": 45}, clock=desk.clock)
    assert await desk.run() == ["refunded 45"]


async def test_a_deadline_rejects(memory: MemoryStore) -> None:
    """What nobody decided in time is not done, and the model is told so."""
    desk = Desk(memory, approvals=Approvals(timeout=timedelta(days=1)))
    await desk.ask()
    desk.clock.advance(timedelta(days=2))
    [said] = await desk.run()
    assert "nobody decided" in said
    assert desk.refunds == []


async def test_two_calls_wait_at_once(memory: MemoryStore) -> None:
    """Each call of a turn has an approval of its own, and all are asked for at once."""
    desk = Desk(memory, call("refund", "call_0", amount=1), call("refund", "call_1", amount=2))
    first, second = sorted(await desk.ask())
    await control.reject(memory, "desk", first, by="ann", reason="no", clock=desk.clock)
    assert await desk.ask() == [second]
    await control.approve(memory, "desk", second, by="ann", clock=desk.clock)
    assert await desk.run() == ["The call was rejected: no", "refunded 2"]


async def test_a_tool_asks_by_itself(memory: MemoryStore) -> None:
    """A tool that raises `ApprovalRequired`, above a threshold say, is shown with what it said, and called again after."""
    agent = Agent(scripted([call("refund", amount=90)], "done"), name="desk", capabilities=[Durability()])
    refunds: list[int] = []

    @agent.tool
    def refund(ctx: RunContext[None], amount: int) -> str:
        if amount > 50 and not ctx.tool_call_approved:
            raise ApprovalRequired(metadata={"limit": 50})
        refunds.append(amount)
        return f"refunded {amount}"

    with pytest.raises(RunSuspended):
        async with Runner(memory, "desk", wait_limit=0) as runner:
            await run_agent(runner, "pay", agent, "please")
    asked = await memory.get("desk", ASK)
    assert asked is not None
    assert asked.note["show"]["metadata"] == {"limit": 50}
    await control.approve(memory, "desk", ASK, by="ann")
    for _ in range(2):
        async with Runner(memory, "desk", wait_limit=0) as runner:
            assert told((await run_agent(runner, "pay", agent, "please")).all_messages()) == ["refunded 90"]
    assert refunds == [90]


async def test_a_call_that_is_made_elsewhere(memory: MemoryStore) -> None:
    """A tool of an `ExternalToolset` waits as an event, whose value is what the model is told."""
    tools = ExternalToolset([ToolDefinition(name="print_label")], id="warehouse")
    agent = Agent(scripted([call("print_label")], "done"), name="desk", toolsets=[tools], capabilities=[Durability()])
    with pytest.raises(RunSuspended):
        async with Runner(memory, "desk", wait_limit=0) as runner:
            await run_agent(runner, "pack", agent, "please")
    await control.send(memory, "desk", "pack/answer-print_label-1-call_0", {"label": 7})
    async with Runner(memory, "desk", wait_limit=0) as runner:
        assert told((await run_agent(runner, "pack", agent, "please")).all_messages()) == [{"label": 7}]


async def test_what_went_wrong_elsewhere(memory: MemoryStore) -> None:
    """The model is told so, as of a tool of its own that failed; the run goes on."""
    tools = ExternalToolset([ToolDefinition(name="print_label")], id="warehouse")
    agent = Agent(scripted([call("print_label")], "done"), name="desk", toolsets=[tools], capabilities=[Durability()])
    await control.send_failure(memory, "desk", "pack/answer-print_label-1-call_0", error="no paper", by="ann")
    for _ in range(2):
        async with Runner(memory, "desk", wait_limit=0) as runner:
            result = await run_agent(runner, "pack", agent, "please")
        assert result.output == "done"
        assert "no paper" in str(told(result.all_messages()))


async def test_a_question_to_a_person(memory: MemoryStore) -> None:
    """A tool that asks something waits as an event, whose name shows the question."""
    agent = Agent(scripted([call("ask", question="Which colour?")], "done"), name="desk", capabilities=[Durability()])

    @agent.tool_plain
    def ask(question: str) -> str:
        raise CallDeferred(kind="question")

    with pytest.raises(RunSuspended):
        async with Runner(memory, "desk", wait_limit=0) as runner:
            await run_agent(runner, "talk", agent, "please")
    waiting = await memory.get("desk", "talk/answer-ask-1-call_0")
    assert waiting is not None
    assert "Which colour?" in waiting.name
    await control.send(memory, "desk", "talk/answer-ask-1-call_0", "green", by="ann")
    async with Runner(memory, "desk", wait_limit=0) as runner:
        assert told((await run_agent(runner, "talk", agent, "please")).all_messages()) == ["green"]


async def test_pydantic_ais_own_way_to_ask(memory: MemoryStore) -> None:
    """`RequestInput` hands out the id of an event once; the answer sent there is what the calls get."""
    tokens: list[str] = []

    def ask(ctx: RunContext[None], requests: DeferredToolRequests, token: str) -> DeferredToolResults | None:
        tokens.append(token)
        return None

    capabilities = [RequestInput(ask, name="desk"), Durability()]
    agent = Agent(scripted([call("refund", amount=90)], "done"), name="desk", capabilities=capabilities)

    @agent.tool_plain(requires_approval=True)
    def refund(amount: int) -> str:
        return f"refunded {amount}"

    for _ in range(2):
        with pytest.raises(RunSuspended):
            async with Runner(memory, "desk", wait_limit=0) as runner:
                await run_agent(runner, "pay", agent, "please")
    [token] = tokens
    await control.send(memory, "desk", token, json.loads('{"approvals": {"call_0": true}}'))
    async with Runner(memory, "desk", wait_limit=0) as runner:
        assert told((await run_agent(runner, "pay", agent, "please")).all_messages()) == ["refunded 90"]


async def test_edited_arguments_that_the_tool_cannot_take(memory: MemoryStore) -> None:
    """The model is told what is wrong with them, the tool isn't called, and on a replay it is the same."""
    desk = Desk(memory)
    await desk.ask()
    await control.approve(memory, "desk", ASK, by="ann", value={"amount": "lots"}, clock=desk.clock)
    for _ in range(2):
        [[said]] = await desk.run()
        assert (said["loc"], said["input"]) == (["amount"], "lots")
    assert desk.refunds == []


async def test_one_call_fails_while_another_waits(memory: MemoryStore) -> None:
    """The run fails before anybody is asked; mended and retried it asks, and the call that was approved is made."""
    turn = [call("refund", amount=90), call("look", "call_1")]
    agent = Agent(scripted(turn, "done"), name="desk", capabilities=[Durability()])
    happened: list[str] = []

    @agent.tool_plain(requires_approval=True)
    def refund(amount: int) -> str:
        happened.append("refund")
        return f"refunded {amount}"

    @agent.tool_plain
    def look() -> str:
        happened.append("look")
        if happened == ["look"]:
            raise ConnectionError("away")
        return "found"

    async def run() -> list[Any]:
        async with Runner(memory, "desk", wait_limit=0) as runner:
            return told((await run_agent(runner, "pay", agent, "please")).all_messages())

    with pytest.raises(StepFailed, match="away"):
        await run()
    assert [record async for record in control.pending(memory)] == []
    await control.retry(memory, "desk", "pay/look-1-call_1")
    with pytest.raises(RunSuspended):
        await run()
    await control.approve(memory, "desk", ASK, by="ann")
    for _ in range(2):
        assert await run() == ["found", "refunded 90"]
    assert happened == ["look", "look", "refund"]


async def test_who_decides_in_a_toolset_that_is_made_for_each_turn(memory: MemoryStore) -> None:
    """What a tool says stands in the log with its description, and holds."""

    def refund(amount: int) -> str:
        return f"refunded {amount}"

    tool = Tool(refund, requires_approval=True, metadata={"durable": {"approvals": Approvals(approvers=["ann"])}})
    tools = DynamicToolset[None](lambda ctx: FunctionToolset([tool]), id="till")
    agent = Agent(scripted([call("refund", amount=90)], "done"), name="desk", toolsets=[tools], capabilities=[Durability()])
    for _ in range(2):
        with pytest.raises(RunSuspended):
            async with Runner(memory, "desk", wait_limit=0) as runner:
                await run_agent(runner, "pay", agent, "please")
    with pytest.raises(Refused, match="may not decide"):
        await control.approve(memory, "desk", ASK, by="mallory")
    await control.approve(memory, "desk", ASK, by="ann")
    async with Runner(memory, "desk", wait_limit=0) as runner:
        assert told((await run_agent(runner, "pay", agent, "please")).all_messages()) == ["refunded 90"]


@pytest.mark.parametrize(
    ("approvals", "message"),
    [
        ({"quorum": 0}, "quorum must be at least 1, not 0"),
        ({"quorum": 3, "approvers": ("a", "b")}, "at most 2, the number of approvers"),
        ({"approvers": "ann"}, "write \\['ann'\\]"),
        ({"on_timeout": "approve"}, "'fail' or 'reject'"),
        ({"timeout": 0}, "timeout must be a finite number of seconds, more than 0"),
        ({"quorom": 2}, "unknown option 'quorom'; did you mean 'quorum'"),
        (2, "approvals must be a dict, such as Approvals\\(quorum=2\\), not 2"),
    ],
)
async def test_approvals_that_cannot_be(memory: MemoryStore, approvals: Any, message: str) -> None:
    """They are refused where they are written, or before the model is asked."""
    with pytest.raises((TypeError, ValueError), match=message):
        Durability(approvals=approvals)
    desk = Desk(memory, approvals=approvals)
    with pytest.raises((TypeError, ValueError), match=f"the metadata 'durable' of the tool 'refund': .*{message}"):
        await desk.run()
    assert not await memory.list("desk")
