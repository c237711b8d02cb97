"""A run of a few steps, a wait of a day and a child; a process of its own visits it, and is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from durable_core import Flow, Runner, StepEvent, current_step, flow, open_store
from durable_core.testing import FakeClock
from durable_otel import instrument

START = datetime(2026, 3, 2, 9, tzinfo=UTC)


def die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def onboarding(clock: FakeClock, *, visit: int, tracers: TracerProvider) -> Flow[..., str]:
    """Return the flow as it goes on this visit: it is killed in the first two."""
    billed = asyncio.Event()

    def hear(event: StepEvent) -> None:
        if event.step_id == "bill" and event.type in ("step:success", "step:replay"):
            billed.set()

    async def create(email: str) -> str:
        clock.advance(2)
        return email

    async def bill() -> None:
        clock.advance(1)
        if current_step().attempt == 1 and visit == 1:
            raise ConnectionError("no answer")
        if visit == 1:
            die()

    async def welcome() -> None:
        await billed.wait()
        clock.advance(1)
        if visit == 2:
            die()

    async def ask() -> str:
        clock.advance(3)
        return "fine"

    @flow
    async def survey(runner: Runner) -> str:
        return await runner.step("ask", ask)

    @flow(clock=clock, wait_limit=0, on_event=[instrument(tracers), hear])
    async def onboard(runner: Runner, email: str) -> str:
        await runner.step("create", create, email)
        await asyncio.gather(runner.step("bill", bill, max_attempts=2), runner.step("welcome", welcome))
        await runner.sleep("a-day", timedelta(days=1))
        return await runner.flow("survey", survey)

    return onboard


def as_json(span: ReadableSpan) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(span.to_json())
    return read


async def visit(folder: Path, number: int) -> None:
    """Visit the run for the first or the second time, and be killed."""
    clock = FakeClock(START + timedelta(minutes=5 * (number - 1)))
    tracers = TracerProvider()
    with (folder / "spans.jsonl").open("a", encoding="utf-8") as file:
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: json.dumps(as_json(span)) + "\n")
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        async with open_store(f"sqlite:{folder / 'runs.db'}") as store:
            run = onboarding(clock, visit=number, tracers=tracers)
            await run.run(store, run_id="onboard-7", email="ada@example.com")


if __name__ == "__main__":
    asyncio.run(visit(Path(sys.argv[1]), int(sys.argv[2])))
