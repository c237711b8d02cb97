"""Events of agents, on the first run and on a replay."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import AgentStreamEvent, FunctionToolResultEvent, ModelMessage, PartDeltaEvent, PartStartEvent
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable_core import MemoryStore, Runner
from durable_pydantic_ai import Durability, run_agent


async def speak(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    if len(messages) == 1:
        yield {0: DeltaToolCall(name="look", json_args="{}", tool_call_id="call_0")}
        return
    for word in ("all ", "is ", "well"):
        yield word


def look() -> str:
    return "looked"


async def test_events_reach_the_handler_of_the_capability_once(memory: MemoryStore) -> None:
    """It gets each piece as it comes, and what tools return; on a replay nothing."""
    seen: list[AgentStreamEvent] = []

    async def handler(ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            seen.append(event)  # noqa: PERF401 - each is there as soon as it comes

    capability = Durability[None](event_stream_handler=handler)
    agent = Agent(FunctionModel(stream_function=speak), name="speaker", tools=[look], capabilities=[capability])
    for _ in range(2):
        async with Runner(memory, "speech") as runner:
            assert (await run_agent(runner, "speak", agent, "go")).output == "all is well"
        assert sum(isinstance(event, PartDeltaEvent) for event in seen) == 2
        assert sum(isinstance(event, FunctionToolResultEvent) for event in seen) == 1


async def test_a_handler_of_one_run_gets_each_answer_as_a_whole(memory: MemoryStore) -> None:
    """What is given to `run_agent` is told of recorded answers, so on the first run and on a replay alike."""
    agent = Agent(FunctionModel(stream_function=speak), name="speaker", tools=[look], capabilities=[Durability()])
    runs: list[list[str]] = []

    async def handler(ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if isinstance(event, PartStartEvent):
                runs[-1].append(event.part.part_kind)
            assert not isinstance(event, PartDeltaEvent)

    for _ in range(2):
        runs.append([])
        async with Runner(memory, "speech") as runner:
            result = await run_agent(runner, "speak", agent, "go", event_stream_handler=handler)
            assert result.output == "all is well"
    assert runs[0] == runs[1] == ["tool-call", "text"]
