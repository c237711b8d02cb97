"""What the spans of an agent's steps say, where `durable-otel` makes them."""

from __future__ import annotations

from typing import Any

from agents import Agent, function_tool
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durable_core import MemoryStore, Runner
from durable_openai_agents import run_agent
from durable_otel import instrument

from .script import Script, call, once


def said(span: ReadableSpan) -> dict[str, Any]:
    return {key: value for key, value in (span.attributes or {}).items() if key.startswith("gen_ai.")}


async def test_a_request_says_its_model_and_its_tokens(store: MemoryStore) -> None:
    """On its step's span, once; a tool's span, and one of somebody else around it, say nothing."""

    @function_tool
    async def look() -> str:
        return "rain"

    model: Any = Script(once(call("look")))
    model.model = "small-1"
    agent = Agent("scout", tools=[look], model=model)
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    for handler in (instrument(tracers), instrument(tracers), None):
        run_id = "unseen" if handler is None else "run"
        with tracers.get_tracer("mine").start_as_current_span("around"):
            async with Runner(store, run_id, on_event=handler) as runner:
                await run_agent(runner, "scout", agent, "Go.")
    request = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "small-1", "gen_ai.usage.output_tokens": 2}
    assert [(span.name, said(span)) for span in exporter.get_finished_spans()] == [
        ("step model", {**request, "gen_ai.usage.input_tokens": 1}),
        ("step look", {}),
        ("step model", {**request, "gen_ai.usage.input_tokens": 3}),
        *[("around", {})] * 3,
    ]
