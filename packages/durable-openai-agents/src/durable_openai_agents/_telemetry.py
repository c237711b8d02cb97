"""Attributes for the span of a model request, if OpenTelemetry is installed and `durable-otel` makes spans of steps."""

from __future__ import annotations

from typing import Any

from agents import Model, ModelResponse

try:
    from opentelemetry.trace import get_current_span
except ImportError:
    get_current_span = None  # type: ignore[assignment]  # it is optional


def tell_span(model: Model, response: ModelResponse) -> None:
    """Set the attributes for generative models on the current span, if it is the span of a step."""
    span: Any = None if get_current_span is None else get_current_span()
    if "durable.step.id" not in (getattr(span, "attributes", None) or {}):
        return
    attributes: dict[str, str | int] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": response.usage.input_tokens,
        "gen_ai.usage.output_tokens": response.usage.output_tokens,
    }
    if (name := getattr(model, "model", None)) is not None:
        attributes["gen_ai.request.model"] = str(name)
    span.set_attributes(attributes)
