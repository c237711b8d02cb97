"""A handler that turns a runner's events into spans and metrics."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import TracerProvider, get_tracer

from durable_core import StepEvent

from ._measures import Measures
from ._spans import Spans

NAME: Final = "durable_otel"
"""The instrumentation scope of spans and metrics."""
VERSION: Final = version("durable-otel")


def instrument(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    payloads: bool = False,
) -> Callable[[StepEvent], None]:
    """Return a handler for `on_event` that makes spans and metrics from the events of a runner, a flow or a worker.

    Each visit of a run, which is one call of its flow's function, is a span, linked to the visit before, in any process. Each
    attempt of a step is a span inside it, or inside the current span if there is no flow, and is current in the step's function.
    Waits are span events. A replayed step makes nothing. Times are those of the runner's clock.

    The metrics are `durable.step.duration`, in seconds, and `durable.step.attempts`. They never contain ids of runs or steps.

    The providers are the global ones by default. With `payloads`, spans also contain a flow's input, the values of steps and
    flows, what approvals show, and the messages of exceptions, up to 4,000 characters each. Without it, they contain only the
    types of exceptions. Raises `TypeError` for an invalid provider.

    One handler may serve any number of runs, stores and threads, unless two runs with the same id run at the same time.
    """
    if isinstance(tracer_provider, StepEvent):
        raise TypeError("instrument makes the handler: write on_event=instrument(), not on_event=instrument")
    check_provider("tracer_provider", tracer_provider, TracerProvider)
    check_provider("meter_provider", meter_provider, MeterProvider)
    spans = Spans(get_tracer(NAME, VERSION, tracer_provider), payloads=payloads)
    measures = Measures(get_meter(NAME, VERSION, meter_provider))

    def tell(event: StepEvent) -> None:
        try:
            if (attempt := spans.attempt_of(event)) is not None:
                measures.attempt(event, attempt)  # while its span is current, so that exemplars link to it
        finally:
            spans.tell(event)

    return tell


def check_provider(name: str, provider: object, expected: type) -> None:
    """Raise `TypeError` unless it is a provider or None."""
    if provider is not None and not isinstance(provider, expected):
        raise TypeError(f"{name} must be a {expected.__name__} of OpenTelemetry, or None for the global one, not {provider!r}")
