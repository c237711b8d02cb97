"""What a runner tells, made into spans and measures."""

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
"""The scope of instrumentation that spans and measures carry."""
VERSION: Final = version("durable-otel")


def instrument(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    payloads: bool = False,
) -> Callable[[StepEvent], None]:
    """Return a handler for `on_event` that makes spans and metrics of what a runner, a flow or a worker tells.

    A span for each visit of a run, which is one call of its flow's function, linked to the visit before, in whatever process
    that was. In it, or in the span that is current where there is no flow, a span for each attempt of a step, current inside the
    step's function; waits are events. A step that is replayed makes nothing. Times are those of the runner's clock.

    Metrics are `durable.step.duration`, in seconds, and `durable.step.attempts`. They never hold the id of a run or a step.

    The providers are the global ones unless given. With `payloads`, spans also hold a flow's input, the values of steps and
    flows, what approvals show, and the messages of exceptions, 4,000 characters of each; without it, of these only the types
    of exceptions. Raises `TypeError` for what is no provider.

    One handler may serve any number of runs, stores and threads, as long as no two runs of the same id go on at once.
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
                measures.attempt(event, attempt)  # while its span is current, to which an exemplar leads
        finally:
            spans.tell(event)

    return tell


def check_provider(name: str, provider: object, expected: type) -> None:
    """Raise `TypeError` for what is neither a provider nor None."""
    if provider is not None and not isinstance(provider, expected):
        raise TypeError(f"{name} must be a {expected.__name__} of OpenTelemetry, or None for the global one, not {provider!r}")
