"""Whatever tracing does, and whatever it is given, the run goes on, and the program is as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from durable_core import MemoryStore, Runner, StepFailed, StepRecord, flow
from durable_otel import instrument
from tests.otel.conftest import Seen


@pytest.fixture(autouse=True)
def leaves_nothing_current() -> Iterator[None]:
    """After each of these tests no span is current that was not before."""
    yield
    assert trace.get_current_span() is trace.INVALID_SPAN


class Raises(SpanProcessor):
    """Raises where a span begins, or where it ends."""

    def __init__(self, where: str) -> None:
        self._where = where

    def on_start(self, span: Span, parent_context: object = None) -> None:
        if self._where == "start":
            raise RuntimeError("tracing is broken")

    def on_end(self, span: ReadableSpan) -> None:
        if self._where == "end":
            raise RuntimeError("tracing is broken")


@pytest.mark.parametrize("where", ["start", "end"])
async def test_a_provider_that_raises_harms_no_run(where: str, seen: Seen) -> None:
    """Its steps run once, and nothing stays current, neither between steps nor after the run."""
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(Raises(where))
    between: list[str] = []

    @flow(on_event=instrument(tracers, seen.meters))
    async def two(runner: Runner) -> list[int]:
        first = await runner.step("a", lambda: 1)
        between.append(getattr(trace.get_current_span(), "name", "none"))
        return [first, await runner.step("b", lambda: 2)]

    store = MemoryStore()
    assert await two.run(store, run_id="run") == [1, 2]
    assert between == ["none" if where == "start" else "run two"]
    assert [record.status for record in await store.list("run")] == ["started", "success", "success", "success"]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_an_exporter_that_hangs_holds_up_no_run() -> None:
    """The SDK drops the spans that it has no room for."""
    goes_on = threading.Event()

    class Hangs(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            goes_on.wait(60)
            return SpanExportResult.SUCCESS

    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(Hangs(), max_queue_size=8, max_export_batch_size=4, schedule_delay_millis=1))

    @flow(on_event=instrument(tracers))
    async def many(runner: Runner) -> int:
        return len([await runner.step(f"step-{number}", lambda: None) for number in range(50)])

    try:
        assert await many.run(MemoryStore(), run_id="run") == 50
        assert not goes_on.is_set()
    finally:
        goes_on.set()
        tracers.shutdown()


async def test_two_handlers_leave_nothing_behind(seen: Seen) -> None:
    """Each ends what it began, the last one first: the flow, and who called it, find the span that was current."""
    tracer, between = seen.tracers.get_tracer("mine"), []

    @flow(on_event=[instrument(seen.tracers), instrument(seen.tracers)])
    async def twice(runner: Runner) -> None:
        between.append(trace.get_current_span())
        await runner.step("a", lambda: None)
        between.append(trace.get_current_span())

    with tracer.start_as_current_span("request") as request:
        await twice.run(MemoryStore(), run_id="run")
        assert trace.get_current_span() is request
    assert between[0] is between[1]
    names = {span.context.span_id: span.name for span in seen.spans}
    assert [(span.name, names[span.parent.span_id]) for span in seen.spans if span.parent] == [
        ("step a", "step a"),
        ("step a", "run twice"),
        ("run twice", "request"),
        ("run twice", "request"),
    ]


async def test_an_exception_that_has_no_text(seen: Seen) -> None:
    """One whose `str` raises is shown as the log shows it, and its span ends."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def fails() -> None:
        raise Mute

    @flow(on_event=instrument(seen.tracers, payloads=True))
    async def mute(runner: Runner) -> None:
        with pytest.raises(StepFailed):
            await runner.step("a", fails)
        raise Mute

    with pytest.raises(Mute):
        await mute.run(MemoryStore(), run_id="run")
    assert [span.name for span in seen.spans] == ["step a", "run mute"]
    (raised,) = seen.spans[0].events
    assert "whose message raised RuntimeError" in str((raised.attributes or {})["exception.message"])


VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "carried",
    [
        "text",
        ["traceparent"],
        {"traceparent": 7},
        {"traceparent": [VALID]},
        {"traceparent": {"a": 1}},
        {"traceparent": None},
        {"traceparent": "00-nonsense"},
        {"traceparent": ""},
        {"tracestate": "a=b"},
    ],
    ids=repr,
)
async def test_a_damaged_context_makes_no_link(seen: Seen, carried: Any) -> None:
    """What stands in the log under `carried` may be anything: the visit has its span all the same."""
    store = MemoryStore()
    note = {"input": {}, "carried": carried}
    await store.append(StepRecord(run_id="run", step_id="$flow", kind="flow", name="plain", status="started", note=note))

    @flow(on_event=instrument(seen.tracers))
    async def plain(runner: Runner) -> None:
        return None

    await plain.run(store, run_id="run")
    assert seen.span("run plain").links == ()


async def test_names_can_be_exported(seen: Seen) -> None:
    """A name that UTF-8 can't hold would cost an exporter its whole batch: spans and measures have it as the log has."""
    async with Runner(MemoryStore(), run_id="run", on_event=instrument(seen.tracers, seen.meters)) as runner:
        await runner.step("a", lambda: None, name="pay \ud800")
    (span,), (point,) = seen.spans, seen.points("durable.step.attempts")
    assert (span.name, (span.attributes or {})["durable.step.name"]) == ("step pay \\ud800", "pay \\ud800")
    assert point.attributes["durable.step.name"] == "pay \\ud800"
