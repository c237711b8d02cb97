"""What a replay returns is what the first run returned."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelRetry, RunContext
from pydantic_ai.messages import ToolReturn
from pydantic_ai.models.test import TestModel

from durable_core import MemoryStore, Runner, StepDrift, StepFailed, StepRecord
from durable_pydantic_ai import Durability, run_agent
from tests.pydantic_ai.conftest import call, scripted, told, without_times


class Answer(BaseModel):
    text: str
    score: float


async def test_a_replay_returns_an_equal_result(memory: MemoryStore) -> None:
    """Typed output, messages and usage are those of the first run, and neither a model nor a tool is asked."""
    asked: Counter[str] = Counter()
    model = scripted(
        [call("picture", "call_0"), call("price", "call_1", of="tea")],
        [call("final_result", "call_0", text="done", score=0.5)],
        asked=asked,
    )
    agent = Agent(model, name="seller", output_type=Answer, capabilities=[Durability()])

    @agent.tool_plain
    def picture() -> ToolReturn[str]:
        asked["picture"] += 1
        return ToolReturn("see the picture", content=[BinaryContent(b"\x89PNG\x00\xff", media_type="image/png")])

    @agent.tool_plain
    async def price(of: str) -> dict[str, float]:
        asked["price"] += 1
        return {of: 1.5}

    async with Runner(memory, "sale") as runner:
        first = await run_agent(runner, "sell", agent, "Tea, please")
    async with Runner(memory, "sale") as runner:
        again = await run_agent(runner, "sell", agent, "Tea, please")
    assert first.output == again.output == Answer(text="done", score=0.5)
    assert without_times(first.all_messages()) == without_times(again.all_messages())
    assert "\\x89PNG" in without_times(again.all_messages())
    assert first.usage == again.usage
    assert first.run_id == again.run_id
    assert set(asked.values()) == {1}


async def test_ids_of_calls_that_repeat_in_every_turn(memory: MemoryStore) -> None:
    """Providers number calls anew in each turn: the turn tells them apart, and two runs in a scope as well."""
    agent = Agent(scripted([call("add", a=1)], [call("add", a=2)], "done"), name="adder", capabilities=[Durability()])
    sums: list[int] = []

    @agent.tool_plain
    def add(a: int) -> int:
        sums.append(a)
        return sum(sums)

    for _ in range(2):
        async with Runner(memory, "sums") as runner:
            scope = runner.scope("part")
            first = await run_agent(scope, "one", agent, "go")
            second = await run_agent(scope, "two", agent, "go")
            assert told(first.all_messages()) == [1, 3]
            assert told(second.all_messages()) == [4, 6]
    assert sums == [1, 2, 1, 2]
    steps = [record.step_id for record in await memory.list("sums")]
    assert steps[:3] == ["part/one/model-1", "part/one/add-1-call_0", "part/one/model-2"]
    assert "part/two/add-2-call_0" in steps


async def test_retries_that_a_tool_asks_for_are_replayed(memory: MemoryStore) -> None:
    """`ModelRetry` is recorded as what the tool said, counts as no failure, and the model is told the same on a replay."""
    agent = Agent(scripted([call("pick", n=1)], [call("pick", n=2)], "picked"), name="picker", capabilities=[Durability()])
    called: list[int] = []

    @agent.tool_plain
    def pick(n: int) -> str:
        called.append(n)
        if n == 1:
            raise ModelRetry("1 is taken")
        return "yours"

    results = []
    for _ in range(2):
        async with Runner(memory, "picking") as runner:
            results.append(await run_agent(runner, "pick", agent, "a number"))
    assert without_times(results[0].all_messages()) == without_times(results[1].all_messages())
    assert "1 is taken" in without_times(results[1].all_messages())
    assert called == [1, 2]


async def test_a_timeout_of_a_tool_is_replayed(memory: MemoryStore) -> None:
    """A tool that was too slow once was too slow for good."""
    agent = Agent(scripted([call("slow")], "without it"), name="waiter", capabilities=[Durability()])
    called: list[int] = []

    @agent.tool_plain(timeout=0.01)
    async def slow() -> str:
        import asyncio

        called.append(1)
        await asyncio.Event().wait()
        return "never"

    for _ in range(2):
        async with Runner(memory, "slow") as runner:
            result = await run_agent(runner, "wait", agent, "go")
            assert "Timed out" in without_times(result.all_messages())
    assert called == [1]


async def test_failures_are_replayed(memory: MemoryStore) -> None:
    """What a tool raises fails its step once its attempts have run out, on every run with the same error."""
    agent = Agent(scripted([call("pay")], "paid"), name="payer", capabilities=[Durability(tool={"max_attempts": 2})])
    called: list[int] = []

    @agent.tool_plain
    def pay() -> str:
        called.append(1)
        raise ConnectionError("the bank is closed")

    failures = []
    for _ in range(2):
        async with Runner(memory, "paying") as runner:
            with pytest.raises(StepFailed, match="the bank is closed") as failed:
                await run_agent(runner, "pay", agent, "go")
            failures.append(failed.value)
    assert failures[0] == failures[1]
    assert failures[0].error.matches(ConnectionError)
    assert failures[0].step_id == "pay/pay-1-call_0"
    assert called == [1, 1]


async def test_requests_are_tried_again(memory: MemoryStore) -> None:
    """The options for `model` hold for its requests."""
    from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel

    tries: list[int] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("busy")
        return ModelResponse(parts=[TextPart("at last")])

    agent = Agent(FunctionModel(answer), name="patient", capabilities=[Durability(model={"max_attempts": 3})])
    async with Runner(memory, "busy") as runner:
        assert (await run_agent(runner, "ask", agent, "go")).output == "at last"
    assert len(tries) == 3


async def test_a_record_that_no_longer_decodes_is_drift(memory: MemoryStore) -> None:
    """The run stops with `StepDrift` that names the step: no model is asked to mend what it didn't do."""
    asked: Counter[str] = Counter()
    agent = Agent(scripted([call("add", a=1)], "done", asked=asked), name="adder", capabilities=[Durability()])

    @agent.tool_plain
    def add(a: int) -> int:
        return a

    other = MemoryStore()
    async with Runner(memory, "sums") as runner:
        await run_agent(runner, "sum", agent, "go")
    for record in await memory.list("sums"):
        if record.step_id == "sum/add-1-call_0":
            record = StepRecord.from_json(record.to_json().replace(b"tool_return", b"tool_of_old"))
        await other.append(record)
    asked.clear()
    async with Runner(other, "sums") as runner:
        with pytest.raises(StepDrift, match="'sum/add-1-call_0' recorded is no result today") as drift:
            await run_agent(runner, "sum", agent, "go")
    assert drift.value.step_id == "sum/add-1-call_0"
    assert not asked


async def test_other_arguments_than_recorded_are_drift(memory: MemoryStore) -> None:
    """A tool whose arguments are no longer those of the record is told of, as a step is."""
    agents = [Agent(scripted([call("add", a=1)], "done"), name="adder", capabilities=[Durability()]) for _ in range(2)]
    for agent, factor in zip(agents, (1, 2), strict=True):

        @agent.tool_plain
        def add(a: int) -> int:
            return a

        async with Runner(memory, "sums", on_drift="raise") as runner:
            if factor == 1:
                await run_agent(runner, "sum", agent, "go")
                continue
            records = await memory.list("sums")
            other = MemoryStore()
            for record in records:
                if record.step_id == "sum/model-1":
                    record = StepRecord.from_json(record.to_json().replace(b'{"a":1}', b'{"a":2}'))
                await other.append(record)
        async with Runner(other, "sums", on_drift="raise") as runner:
            with pytest.raises(StepDrift, match="add-1-call_0"):
                await run_agent(runner, "sum", agent, "go")


async def test_what_has_no_json_fails_and_is_not_tried_again(memory: MemoryStore) -> None:
    """The effect has happened: a second attempt would not help."""
    agent = Agent(scripted([call("odd")], "done"), name="odd", capabilities=[Durability(tool={"max_attempts": 3})])
    called: list[int] = []

    @agent.tool_plain
    def odd() -> object:
        called.append(1)
        return object()

    async with Runner(memory, "odd") as runner:
        with pytest.raises(StepFailed, match="has no JSON"):
            await run_agent(runner, "odd", agent, "go")
    assert called == [1]


async def test_dependencies_are_not_recorded(memory: MemoryStore) -> None:
    """A tool gets them, and what it changes on them doesn't happen on a replay."""
    agent = Agent(scripted([call("note")], "done"), name="noter", deps_type=list[str], capabilities=[Durability()])

    @agent.tool
    def note(ctx: RunContext[list[str]]) -> str:
        ctx.deps.append("noted")
        return "ok"

    found = []
    for _ in range(2):
        notes: list[str] = []
        async with Runner(memory, "notes") as runner:
            await run_agent(runner, "note", agent, "go", deps=notes)
        found.append(notes)
    assert found == [["noted"], []]


async def test_pydantic_ais_own_test_model(memory: MemoryStore) -> None:
    """`TestModel` calls each tool once and is replayed."""
    agent = Agent(TestModel(), name="tested", capabilities=[Durability()])
    called: list[str] = []

    @agent.tool_plain
    def first(a: str) -> str:
        called.append(a)
        return a

    outputs = []
    for _ in range(2):
        async with Runner(memory, "tested") as runner:
            outputs.append((await run_agent(runner, "test", agent, "go")).output)
    assert outputs[0] == outputs[1]
    assert called == ["a"]
