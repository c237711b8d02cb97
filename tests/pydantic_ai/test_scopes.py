"""Where agents run: scopes, flows, and tools of other agents."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from pydantic_ai import Agent, FunctionToolset
from pydantic_ai.toolsets import DynamicToolset

from durable_core import (
    DurableError,
    MemoryStore,
    NestedStep,
    Runner,
    StepFailed,
    StepInterrupted,
    StepReused,
    control,
    current_runner,
    flow,
)
from durable_pydantic_ai import Durability, agent_scope, run_agent
from tests.core.conftest import Killed
from tests.pydantic_ai.conftest import call, scripted, told


def durable(*turns: Any, **options: Any) -> Agent[None, str]:
    return Agent(scripted(*turns), name="worker", capabilities=[Durability(**options)])


async def test_two_agents_at_once_need_two_scopes(memory: MemoryStore) -> None:
    """In one scope the steps of two could not be told apart; in scopes of their own they can."""
    agent = durable("done")
    async with Runner(memory, "one") as runner:
        with agent_scope(runner, "both"), pytest.raises(DurableError, match="two agents run at once in scope 'both'"):
            await asyncio.gather(agent.run("a"), agent.run("b"))
    async with Runner(memory, "two") as runner:
        results = await asyncio.gather(*(run_agent(runner, name, agent, "go") for name in ("a", "b")))
    assert {result.output for result in results} == {"done"}
    assert {record.step_id for record in await memory.list("two")} == {"a/model-1", "b/model-1"}
    assert len({result.run_id for result in results}) == 2


async def test_a_name_that_was_used_before(memory: MemoryStore) -> None:
    """A second `run_agent` of that name says what to do: no answer of the first one is taken for its own."""
    agent = durable("done")
    async with Runner(memory, "one") as runner:
        await run_agent(runner, "triage", agent, "a")
        with pytest.raises(StepReused, match="an agent ran as 'triage' before in this run.*a name of its own"):
            await run_agent(runner, "triage", agent, "b")
        with pytest.raises(StepReused, match="a name of its own"):
            await asyncio.gather(*(run_agent(runner, "both", agent, prompt) for prompt in ("a", "b")))


async def test_an_agent_that_runs_in_a_step_by_name(memory: MemoryStore) -> None:
    """It can't make steps of its own there, and is told how it can."""
    inner, outer = durable("inner says"), durable([call("ask")], "outer says")
    async with Runner(memory, "nested") as runner:

        @outer.tool_plain
        async def ask() -> str:
            return (await run_agent(runner, "inner", inner, "go")).output

        with pytest.raises(NestedStep, match="inside step 'outer/ask-1-call_0'.*metadata={'durable': False}"):
            await run_agent(runner, "outer", outer, "go")
    assert [record.step_id for record in await memory.list("nested")] == ["outer/model-1"]


async def test_runs_one_after_another_in_a_scope(memory: MemoryStore) -> None:
    """The second has ids of its own, and may go on with the messages of the first."""
    agent = durable("one", "two")
    async with Runner(memory, "talk") as runner:
        with agent_scope(runner, "talk"):
            first = await agent.run("hello")
            second = await agent.run("and then", message_history=first.all_messages())
    assert (first.output, second.output) == ("one", "two")
    assert [record.step_id for record in await memory.list("talk")] == ["talk/model-1", "talk/run-2/model-1"]


async def test_an_agent_without_the_capability(memory: MemoryStore) -> None:
    """Nothing of it would be recorded, so `run_agent` refuses it before anything runs."""
    async with Runner(memory, "plain") as runner:
        with pytest.raises(TypeError, match="capabilities=\\[Durability\\(\\)\\]"):
            await run_agent(runner, "plain", Agent(scripted("done"), name="plain"), "go")


async def test_an_agent_in_a_flow_but_in_no_scope(memory: MemoryStore) -> None:
    """It was made to be durable and would not be: that is an error, and not a silence."""
    agent = durable("done")

    @flow
    async def forgetful(runner: Runner) -> str:
        return (await agent.run("go")).output

    with pytest.raises(DurableError, match="outside agent_scope"):
        await forgetful.run(memory, run_id="forgetful")


async def test_an_agent_outside_of_flows(memory: MemoryStore) -> None:
    """There it is an ordinary agent."""
    assert (await durable("done").run("go")).output == "done"


async def test_an_agent_in_a_tool_is_part_of_its_step(memory: MemoryStore) -> None:
    """The tool's step records what the other agent said; that one's requests are no steps."""
    inner, outer = durable("inner says"), durable([call("ask")], "outer says")

    @outer.tool_plain
    async def ask() -> str:
        return (await inner.run("go")).output

    async with Runner(memory, "nested") as runner:
        assert told((await run_agent(runner, "outer", outer, "go")).all_messages()) == ["inner says"]
    assert [r.step_id for r in await memory.list("nested")] == ["outer/model-1", "outer/ask-1-call_0", "outer/model-2"]


async def test_a_tool_that_uses_the_runner_itself(memory: MemoryStore) -> None:
    """With `{"durable": False}` a tool is called as it is, and makes steps of its own, and runs agents in their own scopes."""
    inner, outer = durable("inner says"), durable([call("ask")], "outer says")

    @outer.tool_plain(metadata={"durable": False})
    async def ask() -> str:
        runner = current_runner()
        looked = await runner.step("look", lambda: "looked", returns=str)
        return f"{looked}: {(await run_agent(runner, 'inner', inner, 'go')).output}"

    @flow
    async def both(runner: Runner) -> list[str]:
        return told((await run_agent(runner, "outer", outer, "go")).all_messages())

    for _ in range(2):
        assert await both.run(memory, run_id="inline") == ["looked: inner says"]
    steps = [record.step_id for record in await memory.list("inline") if record.step_id != "$flow"]
    assert steps == ["outer/model-1", "look", "inner/model-1", "outer/model-2"]


async def test_a_tool_at_most_once(memory: MemoryStore) -> None:
    """A tool whose process died in the call is not called again: a person says what happened."""
    agent = durable([call("pay")], "done")
    paid: list[int] = []

    @agent.tool_plain(metadata={"durable": {"at_most_once": True}})
    def pay() -> str:
        paid.append(1)
        if len(paid) == 1:
            raise Killed
        return "paid"

    with pytest.raises(Killed):
        async with Runner(memory, "pay") as runner:
            await run_agent(runner, "pay", agent, "go")
    async with Runner(memory, "pay") as runner:
        with pytest.raises(StepInterrupted):
            await run_agent(runner, "pay", agent, "go")
    await control.resolve(memory, "pay", "pay/pay-1-call_0", {"kind": "tool_return", "result": "paid"}, reason="looked")
    async with Runner(memory, "pay") as runner:
        assert told((await run_agent(runner, "pay", agent, "go")).all_messages()) == ["paid"]
    assert paid == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"max_attempts": 0}}, "must be at least 1"),
        ({"model": {"at_most_once": True}}, "at_most_once is for tools"),
        ({"tool": {"retries": 3}}, "unknown option 'retries'"),
        ({"tool": {"name": 3}}, "name must be a str"),
        ({"tool": 3}, "options of a step must be a dict"),
        ({"model": 0}, "options of a step must be a dict"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """They are refused where they are written, before an agent runs."""
    with pytest.raises((TypeError, ValueError), match=message):
        Durability(**options)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"retries": 1}, "unknown option 'retries'"),
        (True, "options of a step, or False, not True"),
        ({"max_attempts": 0}, "not 0"),
    ],
)
async def test_metadata_that_cannot_be(memory: MemoryStore, metadata: object, message: str) -> None:
    """It is refused before the model is asked, and the error names the tool."""
    agent = durable([call("pay")], "done")

    @agent.tool_plain(metadata={"durable": metadata})
    def pay() -> str:
        raise AssertionError

    async with Runner(memory, "pay") as runner:
        with pytest.raises((TypeError, ValueError), match=f"the metadata 'durable' of the tool 'pay': .*{message}"):
            await run_agent(runner, "pay", agent, "go")
    assert not await memory.list("pay")


async def test_ids_that_models_make_up(memory: MemoryStore) -> None:
    """Whatever a provider calls a call, its step has an id that a log can hold."""
    hostile = "a/b\x00\n" + "ü" * 600
    agent = durable([call("note", hostile)], "done")

    @agent.tool_plain
    def note() -> str:
        return "noted"

    for _ in range(2):
        async with Runner(memory, "hostile") as runner:
            assert told((await run_agent(runner, "n", agent, "go")).all_messages()) == ["noted"]


async def test_a_tool_that_failed_is_retried_from_outside(memory: MemoryStore) -> None:
    """The run failed by its step; `control.retry` lets it go on there, and no model is asked for what it said before."""
    asked: Counter[str] = Counter()
    agent = Agent(scripted([call("pay")], "done", asked=asked), name="payer", capabilities=[Durability()])
    is_open = False

    @agent.tool_plain
    def pay() -> str:
        if not is_open:
            raise ConnectionError("the bank is closed")
        return "paid"

    @flow
    async def payment(runner: Runner) -> list[str]:
        return told((await run_agent(runner, "pay", agent, "go")).all_messages())

    with pytest.raises(StepFailed, match="the bank is closed"):
        await payment.run(memory, run_id="payment")
    is_open = True
    await control.retry(memory, "payment", by="ann")
    assert await payment.run(memory, run_id="payment") == ["paid"]
    assert asked == {"scripted-1": 1, "scripted-2": 1}


async def test_a_toolset_that_is_made_for_each_turn(memory: MemoryStore) -> None:
    """Which tools a dynamic toolset has is recorded in each turn, and so are their calls."""
    made: list[int] = []

    def add(a: int, b: int) -> int:
        made.append(a + b)
        return a + b

    tools = DynamicToolset[None](lambda ctx: FunctionToolset([add]), id="sums")
    agent = Agent(scripted([call("add", a=1, b=2)], "done"), name="adder", toolsets=[tools], capabilities=[Durability()])
    for _ in range(2):
        async with Runner(memory, "dynamic") as runner:
            assert told((await run_agent(runner, "sum", agent, "go")).all_messages()) == [3]
    assert made == [3]
    steps = [record.step_id for record in await memory.list("dynamic")]
    assert steps == ["sum/tools-sums-1", "sum/model-1", "sum/add-1-call_0", "sum/tools-sums-2", "sum/model-2"]


async def test_the_time_of_a_run_counts_from_its_first_start(memory: MemoryStore) -> None:
    """`timeout` of a run is counted from when it first began, which is recorded."""
    agent = durable("done")
    for _ in range(2):
        async with Runner(memory, "timed") as runner:
            assert (await run_agent(runner, "timed", agent, "go", timeout=60)).output == "done"
    assert [record.step_id for record in await memory.list("timed")] == ["timed/started", "timed/model-1"]
