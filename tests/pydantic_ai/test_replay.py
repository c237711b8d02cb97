"""What a replay returns is what the first run returned."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, AgentRunError, BinaryContent, ModelRetry, RunContext, UsageLimitExceeded, UsageLimits
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolReturn
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from durable_core import MemoryStore, Runner, StepDrift, StepFailed, StepRecord, control, flow
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
        with pytest.raises(StepDrift, match="the recorded result of step 'sum/add-1-call_0' can't be read") as drift:
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


@pytest.mark.parametrize(
    ("limits", "made"),
    [({"request_limit": 2}, [1, 2]), ({"tool_calls_limit": 1}, [1]), ({"total_tokens_limit": 60}, [1])],
)
async def test_usage_limits_are_reached_again(memory: MemoryStore, limits: dict[str, int], made: list[int]) -> None:
    """On a replay a limit is passed where it was passed first; the run ends as failed, where its flow says so."""
    agent = Agent(scripted([call("add", a=1)], [call("add", a=2)], "done"), name="adder", capabilities=[Durability()])
    added: list[int] = []

    @agent.tool_plain
    def add(a: int) -> int:
        added.append(a)
        return a

    said = []
    for _ in range(2):
        async with Runner(memory, "sums") as runner:
            with pytest.raises(UsageLimitExceeded) as exceeded:
                await run_agent(runner, "sum", agent, "go", usage_limits=UsageLimits(**limits))
        said.append(str(exceeded.value))
    assert said[0] == said[1]
    assert added == made

    @flow(fails_on=AgentRunError)
    async def sums(runner: Runner) -> None:
        await run_agent(runner, "sum", agent, "go", usage_limits=UsageLimits(**limits))

    with pytest.raises(StepFailed, match="UsageLimitExceeded"):
        await sums.run(memory, run_id="sums-2")
    assert (await control.status(memory, "sums-2")).status == "failed"


async def test_outputs_that_are_asked_for_again(memory: MemoryStore) -> None:
    """A validator runs on a replay, too, and the model isn't asked again for what it mended then."""
    asked: Counter[str] = Counter()
    agent = Agent(scripted("bad", "good", asked=asked), name="writer", capabilities=[Durability()])
    seen: list[str] = []

    @agent.output_validator
    def is_good(output: str) -> str:
        seen.append(output)
        if output == "bad":
            raise ModelRetry("write it better")
        return output

    for _ in range(2):
        async with Runner(memory, "text") as runner:
            assert (await run_agent(runner, "write", agent, "go")).output == "good"
    assert seen == ["bad", "good"] * 2
    assert asked == {"scripted-1": 1, "scripted-2": 1}


async def test_a_step_is_named_after_its_model(memory: MemoryStore) -> None:
    """A `FunctionModel` without a name has the names of its two functions, of which one may be absent."""

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart("done")])

    for model, name in ((FunctionModel(answer), "ask function:answer"), (FunctionModel(answer, model_name="m"), "ask m")):
        agent = Agent(model, name="namer", capabilities=[Durability()])
        async with Runner(memory, name) as runner:
            await run_agent(runner, "part", agent, "go")
        assert [record.name for record in await memory.list(name)] == [name]


async def test_a_run_that_is_cancelled_in_a_request(memory: MemoryStore) -> None:
    """The request is finished and recorded, and the tool that it asked for isn't called; nor in a request that is cut short."""
    asked, answers = asyncio.Event(), asyncio.Event()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.set()
        await answers.wait()
        return ModelResponse(parts=[call("add", a=1)] if len(messages) == 1 else [TextPart("done")])

    agent = Agent(FunctionModel(answer), name="adder", capabilities=[Durability()])
    added: list[int] = []

    @agent.tool_plain
    def add(a: int) -> int:
        added.append(a)
        return a

    @flow
    async def sums(runner: Runner) -> None:
        await run_agent(runner, "sum", agent, "go")

    async with Runner(memory, "sums-0") as runner:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await run_agent(runner, "sum", agent, "go")
    assert not await memory.list("sums-0")
    asked.clear()
    running = asyncio.create_task(sums.run(memory, run_id="sums"))
    await asyncio.wait_for(asked.wait(), 30)
    await control.cancel(memory, "sums", reason="enough")
    answers.set()
    with pytest.raises(StepFailed, match="enough"):
        await running
    assert (await control.status(memory, "sums")).status == "cancelled"
    assert [record.step_id for record in await memory.list("sums") if record.step_id != "$flow"] == ["sum/model-1"]
    assert added == []
    async with Runner(memory, "sums-0") as runner:
        assert (await run_agent(runner, "sum", agent, "go")).output == "done"


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
