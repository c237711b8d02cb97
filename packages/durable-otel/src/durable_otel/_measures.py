"""Metrics of attempts: their duration and number."""

from __future__ import annotations

from typing import Final

from opentelemetry.metrics import Meter

from durable_core import StepEvent

from ._spans import Attempt, error_type, outcome_of

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Measures:
    """Measures attempts. Attributes never contain ids, so a step without a name of its own is not named."""

    def __init__(self, meter: Meter) -> None:
        self._duration: Final = meter.create_histogram(
            "durable.step.duration",
            unit="s",
            description="How long attempts of steps took.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._attempts: Final = meter.create_counter(
            "durable.step.attempts", unit="{attempt}", description="Attempts of steps that ended."
        )

    def attempt(self, event: StepEvent, attempt: Attempt) -> None:
        """Measure the attempt that the event ended."""
        attributes = {"durable.step.outcome": outcome_of(event) or ""}
        if attempt.flow is not None:
            attributes["durable.flow.name"] = attempt.flow
        if event.name != event.step_id:
            attributes["durable.step.name"] = event.name
        if (error := error_type(event)) is not None:
            attributes["error.type"] = error
        self._duration.record((attempt.ended(event) - attempt.began).total_seconds(), attributes)
        self._attempts.add(1, attributes)
