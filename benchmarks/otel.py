"""What the handler of `durable-otel` costs a step in processor time: beside none, without an SDK, and with one."""

from __future__ import annotations

import asyncio
from functools import partial
from time import process_time

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NoOpTracerProvider
from rows import async_medians, row

from durable_core import MemoryStore, OnEvent, Runner, flow
from durable_otel import instrument

STEPS = 2_000


class Nowhere(SpanExporter):
    """Exports by forgetting: what an exporter costs is its own."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def microseconds(on_event: OnEvent | None) -> float:
    """Return what a step of a flow takes, with a handler or without one, and with the thread that exports."""

    async def effect() -> int:
        return 5

    @flow(on_event=on_event)
    async def steps(runner: Runner) -> None:
        for number in range(STEPS):
            await runner.step(f"step-{number}", effect)

    began = process_time()
    await steps.run(MemoryStore(), run_id="run")
    return (process_time() - began) / STEPS * 1e6


async def main() -> None:
    exporting = TracerProvider()
    exporting.add_span_processor(BatchSpanProcessor(Nowhere()))
    handlers: list[OnEvent | None] = [
        None,
        lambda event: None,
        instrument(NoOpTracerProvider(), NoOpMeterProvider()),
        instrument(exporting, MeterProvider([InMemoryMetricReader()])),
    ]
    bare, idle, api, sdk = await async_medians(*(partial(microseconds, handler) for handler in handlers), rounds=9)
    row("a step without a handler", bare, None, "µs")
    row("a handler that does nothing, beside none", idle - bare, None, "µs")
    row("instrument() without an SDK, beside none", api - bare, 30, "µs")
    row("instrument() with an SDK, beside none", sdk - bare, 150, "µs")
    exporting.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
