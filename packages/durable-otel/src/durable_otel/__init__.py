"""Traces and metrics of durable runs in OpenTelemetry."""

from ._observing import observe
from ._telling import instrument

__all__ = ["instrument", "observe"]
