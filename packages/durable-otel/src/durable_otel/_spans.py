"""A span for each visit of a run, and one for each attempt of a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import Token
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Link, Span, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from durable_core import StepError, StepEvent, StepRecord, state_of

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST: Final = 4_000  # characters of one payload
_ENDS_VISIT: Final = frozenset({"run:suspend", "run:crash", "run:end", "run:stop"})
_ENDS_ATTEMPT: Final = {"step:success": "success", "step:failure": "failure", "step:retry": "retry", "step:stop": "stopped"}
_BAD_STATES: Final = frozenset({"failed", "crashed", "parked"})
_context: Final = TraceContextTextMapPropagator()


@dataclass(slots=True)
class Visit:
    """A visit of a run that has not ended."""

    span: Span
    flow: str
    token: Token[Context] | None = None
    """Restores the context from before. None until the flow's function is about to be called."""


@dataclass(slots=True)
class Attempt:
    """An attempt of a step that has not ended."""

    span: Span
    flow: str | None
    """The name of the run's flow. None if the run has no flow."""
    began: datetime
    token: Token[Context]

    def ended(self, event: StepEvent) -> datetime:
        """Return when the attempt ended. Its outcome was recorded later."""
        return max(self.began, event.at if event.record is None else event.record.ended_at)


def outcome_of(event: StepEvent) -> str | None:
    """Return how the event ends an attempt. None if it doesn't."""
    return _ENDS_ATTEMPT.get(event.type)


def error_type(event: StepEvent) -> str | None:
    """Return the name of the exception's class. None without an exception."""
    if event.error is None:
        return event.record.error.type if event.record is not None and event.record.error is not None else None
    cls = type(event.error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


class Spans:
    """Makes spans from events."""

    def __init__(self, tracer: Tracer, *, payloads: bool) -> None:
        self._tracer: Final = tracer
        self._payloads: Final = payloads
        self._visits: Final[dict[str, Visit]] = {}
        self._attempts: Final[dict[tuple[str, str], Attempt]] = {}

    def attempt_of(self, event: StepEvent) -> Attempt | None:
        """Return the attempt that the event ends. None if it ends no attempt."""
        return self._attempts.get((event.run_id, event.step_id)) if event.type in _ENDS_ATTEMPT else None

    def tell(self, event: StepEvent) -> None:
        """Begin or end a span, or add to one, as the event says."""
        if event.type == "run:ask":
            _context.inject(event.carry)  # the first visit links to the current span, if there is one
        elif event.type == "run:visit":
            self._visit(event)
        elif event.type == "run:start":
            self._start_flow(event)
        elif event.type in _ENDS_VISIT:
            self._leave(event)
        elif event.type == "step:start":
            self._try(event)
        elif event.type == "step:wait":
            self._note("durable.wait", event)
        elif event.type in _ENDS_ATTEMPT and not self._end_attempt(event):
            self._note("durable.outcome", event)  # the outcome of a wait, a race or a map

    def _visit(self, event: StepEvent) -> None:
        span = self._tracer.start_span(
            f"run {event.name}",
            links=_links(event.record),
            attributes={"durable.run.id": event.run_id, "durable.flow.name": event.name},
            start_time=_ns(event.at),
        )
        self._visits[event.run_id] = Visit(span, event.name)
        _context.inject(event.carry, set_span_in_context(span, Context()))

    def _start_flow(self, event: StepEvent) -> None:
        visit = self._visits.get(event.run_id)
        if visit is None or visit.token is not None:  # the function is called again in the same visit
            return
        visit.token = attach(set_span_in_context(visit.span))
        if event.record is not None:
            self._add_payload(visit.span, "durable.run.input", event.record.notes.get("input"))

    def _leave(self, event: StepEvent) -> None:
        if (visit := self._visits.pop(event.run_id, None)) is None:
            return  # a worker parks a run without a visit
        if visit.token is not None:
            detach(visit.token)  # first, in case ending the span raises
        state = "stopped" if event.type == "run:stop" or event.record is None else state_of(event.record)
        visit.span.set_attribute("durable.run.state", state)
        if event.type == "run:end":
            self._add_result(visit.span, "durable.run.result", event.record)
        self._tell_error(visit.span, event, bad=state in _BAD_STATES)
        visit.span.end(_ns(event.at))

    def _try(self, event: StepEvent) -> None:
        visit = self._visits.get(event.run_id)
        attributes: dict[str, Any] = {
            "durable.run.id": event.run_id,
            "durable.step.id": event.step_id,
            "durable.step.name": event.name,
            "durable.step.attempt": event.attempt,
        }
        if visit is not None:
            attributes["durable.flow.name"] = visit.flow
        span = self._tracer.start_span(
            f"step {event.name}", context=_parent(visit), attributes=attributes, start_time=_ns(event.at)
        )
        flow = None if visit is None else visit.flow
        token = attach(set_span_in_context(span))
        self._attempts[event.run_id, event.step_id] = Attempt(span, flow, event.at, token)

    def _end_attempt(self, event: StepEvent) -> bool:
        """End the span of the step's attempt. Return False if the step had no attempt under way."""
        if (attempt := self._attempts.pop((event.run_id, event.step_id), None)) is None:
            return False
        detach(attempt.token)  # first, in case ending the span raises
        span, outcome = attempt.span, _ENDS_ATTEMPT[event.type]
        span.set_attribute("durable.step.outcome", outcome)
        if event.delay is not None:
            span.set_attribute("durable.step.retry_delay", event.delay)
        self._add_result(span, "durable.step.result", event.record)
        self._tell_error(span, event, bad=outcome in ("failure", "retry"))
        span.end(_ns(attempt.ended(event)))
        return True

    def _note(self, name: str, event: StepEvent) -> None:
        """Add an event to the visit's span, or to the current span if there is no visit."""
        visit, record = self._visits.get(event.run_id), event.record
        span = get_current_span() if visit is None else visit.span
        if record is None or not span.is_recording():
            return
        attributes: dict[str, Any] = {"durable.step.id": event.step_id, "durable.step.kind": record.kind}
        if record.status == "waiting":
            attributes |= {} if record.until is None else {"durable.wait.until": record.until.isoformat()}
            shown = record.notes.get("show") if self._payloads else None
            attributes |= {} if shown is None else {"durable.approval.show": _text(shown)}
        else:
            attributes["durable.step.outcome"] = record.status
            if record.error is not None:
                attributes["error.type"] = record.error.type
        span.add_event(name, attributes, timestamp=_ns(event.at))

    def _tell_error(self, span: Span, event: StepEvent, *, bad: bool) -> None:
        type_ = error_type(event)
        if type_ is not None:
            span.set_attribute("error.type", type_)
        if self._payloads and event.error is not None:
            said = {"exception.type": type_ or "", "exception.message": StepError.from_exception(event.error).message[:_LONGEST]}
            span.add_event("exception", said, timestamp=_ns(event.at))
        if bad:
            span.set_status(Status(StatusCode.ERROR, type_))

    def _add_payload(self, span: Span, name: str, value: object) -> None:
        if self._payloads and value is not None and span.is_recording():
            span.set_attribute(name, _text(value))

    def _add_result(self, span: Span, name: str, record: StepRecord | None) -> None:
        if self._payloads and record is not None and record.result is not None:
            span.set_attribute(name, record.result[: 4 * _LONGEST].decode(errors="ignore")[:_LONGEST])


def _links(before: StepRecord | None) -> list[Link]:
    """Return a link to the previous visit, or to the span that asked for the run. The flow's newest entry carries its context."""
    carried = None if before is None else before.notes.get("carried")
    if before is None or not isinstance(carried, Mapping):
        return []
    texts = {key: text for key, text in carried.items() if isinstance(text, str)}  # an edited log may contain anything
    context = get_current_span(_context.extract(texts, Context())).get_span_context()
    how: dict[str, Any] = {"durable.visit.ended": "interrupted" if before.status == "started" else state_of(before)}
    if before.status == "waiting" and before.revision == 0:
        how = {"durable.run.asked": True}
    return [Link(context, how)] if context.is_valid else []


def _parent(visit: Visit | None) -> Context | None:
    """Return the context for an attempt's span. None for the current one, if that belongs to the visit."""
    if visit is None or get_current_span().get_span_context().trace_id == visit.span.get_span_context().trace_id:
        return None
    return set_span_in_context(visit.span)


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:_LONGEST]
