"""What an agent's steps say of its model, beside the spans of its framework."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from pydantic_ai import Agent
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel

from durable_core import MemoryStore, Runner, RunSuspended, flow, sync
from durable_otel import instrument
from durable_pydantic_ai import Durability, run_agent
from tests.otel.conftest import Seen

SAID = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "small-1", "gen_ai.usage.input_tokens": 4}


def _said(span: ReadableSpan) -> dict[str, Any]:
    return {key: value for key, value in (span.attributes or {}).items() if key.startswith("gen_ai.")}


def _say() -> None:
    trace.get_current_span().set_attributes(SAID)


async def _say_on_the_loop() -> None:
    _say()


@pytest.mark.parametrize("ask", [_say, _say_on_the_loop])
async def test_a_step_says_what_it_asked_of_a_model(seen: Seen, ask: Any) -> None:
    """What a step's function sets on the span that is current stands on its attempt's, and on no other; once, for a replay."""
    store = MemoryStore()

    @flow(on_event=instrument(seen.tracers), wait_limit=0)
    async def triage(runner: Runner) -> None:
        await runner.step("ask", ask)
        await runner.sleep("pause", 0 if len(seen.spans) > 2 else 3600)

    for _ in range(2):
        with pytest.raises(RunSuspended):
            await triage.run(store, run_id="run")
    assert [(span.name, _said(span)) for span in seen.spans] == [("step ask", SAID), ("run triage", {}), ("run triage", {})]


def test_a_plain_step_says_it_too(seen: Seen) -> None:
    """Without asyncio the function is called in the thread that called the step, where its span is current."""
    with sync.Runner(sync.open_store("memory:"), run_id="run", on_event=instrument(seen.tracers)) as runner:
        runner.step("ask", _say)
    assert _said(seen.span("step ask")) == SAID


async def test_spans_of_an_agents_framework_stand_beside_the_steps(seen: Seen) -> None:
    """With pydantic-ai's own instrumentation each request and each call has its step below it; a replay has neither."""
    settings = InstrumentationSettings(tracer_provider=seen.tracers, include_content=False)
    agent = Agent(TestModel(), name="triage", capabilities=[Durability(), Instrumentation(settings=settings)])

    @agent.tool_plain
    def look_up(order: str) -> str:
        return f"{order} was sent"

    @flow(on_event=instrument(seen.tracers), wait_limit=0)
    async def ticket(runner: Runner) -> str:
        result = await run_agent(runner, "triage", agent, "Where is it?")
        await runner.sleep("pause", 3600)
        return result.output

    store = MemoryStore()
    with pytest.raises(RunSuspended):
        await ticket.run(store, run_id="run")
    first, names = seen.spans, {span.context.span_id: span.name for span in seen.spans}
    assert [(span.name, names[span.parent.span_id]) for span in first if span.parent] == [
        ("step ask test", "chat test"),
        ("chat test", "invoke_agent triage"),
        ("step look_up", "execute_tool look_up"),
        ("execute_tool look_up", "invoke_agent triage"),
        ("step ask test", "chat test"),
        ("chat test", "invoke_agent triage"),
        ("invoke_agent triage", "run ticket"),
    ]
    assert all(_said(span)["gen_ai.usage.input_tokens"] > 0 for span in first if span.name == "chat test")
    with pytest.raises(RunSuspended):
        await ticket.run(store, run_id="run")
    assert [span.name for span in seen.spans[len(first) :]] == ["invoke_agent triage", "run ticket"]
