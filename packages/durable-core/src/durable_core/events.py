"""The events of a runner: what happens to its steps and its run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from inspect import isawaitable
from typing import Any, Final, Literal

import msgspec

from ._system.waits import cancellations
from .record import StepRecord

EventType = Literal[
    "step:replay",
    "step:start",
    "step:success",
    "step:failure",
    "step:retry",
    "step:wait",
    "step:stop",
    "run:ask",
    "run:visit",
    "run:start",
    "run:suspend",
    "run:crash",
    "run:end",
    "run:stop",
]

_logger: Final = logging.getLogger("durable_core")
_LEVELS: Final = {"step:retry": logging.INFO, "step:replay": logging.DEBUG, "run:crash": logging.INFO}


class StepEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a step or to a run. For a run, `step_id` is `$flow` and `name` is the name of its flow."""

    type: EventType
    run_id: str
    step_id: str
    name: str
    attempt: int
    record: StepRecord | None = None
    """The recorded entry; None for `step:start`, `step:retry`, `step:stop` and `run:ask`. For `run:visit`: the entry before it,
    or None."""
    error: BaseException | None = None
    """The exception that the attempt or the flow raised, for `step:retry`, `step:failure`, `run:crash` and `run:end`; the
    exception that stopped it, for `step:stop` and `run:stop`."""
    delay: float | None = None
    """Seconds until the next attempt, for `step:retry`."""
    at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    """When it happened, by the runner's clock."""
    carry: dict[str, str] = msgspec.field(default_factory=dict)
    """For `run:ask` and `run:visit`: strings that a handler puts here are recorded in `record.notes["carried"]`, when the run is
    asked for or when the visit begins. The next visit finds them, in any process, however this visit ends."""


_ENDS: Final = frozenset(
    {"step:success", "step:failure", "step:retry", "step:stop", "run:suspend", "run:crash", "run:end", "run:stop"}
)
"""Several handlers get these events in reverse order, so that the first one ends what it began, such as a span, last."""

Handler = Callable[[StepEvent], Awaitable[Any] | Any]
OnEvent = Handler | Sequence[Handler]


def check_handlers(on_event: object) -> None:
    """Raise `TypeError` unless `on_event` is a handler, several handlers, or None."""
    several = on_event if isinstance(on_event, list | tuple) else [on_event]
    if on_event is not None and not all(map(callable, several)):
        raise TypeError(f"on_event must be a function of one StepEvent, or a list of such functions, not {on_event!r}")


def is_logged(type_: EventType) -> bool:
    """Return True if events of this type are logged."""
    return (level := _LEVELS.get(type_)) is not None and _logger.isEnabledFor(level)


async def tell(on_event: OnEvent | None, event: StepEvent) -> None:
    """Log the event, then call each handler and await what it returns. An exception of a handler is logged and ignored."""
    if is_logged(event.type):
        text, ids = f"{event.type} {event.step_id!r} of run {event.run_id!r}", {"run_id": event.run_id, "step_id": event.step_id}
        if event.type == "run:crash":
            text = f"run {event.run_id!r} of flow {event.name!r} crashed, and goes on when it is run again: {event.error!r}"
        if event.type == "step:retry":
            text += f" in {event.delay:g} s, after attempt {event.attempt} failed: {event.error!r}"
        _logger.log(_LEVELS[event.type], "%s", text, extra=ids)
    handlers: Sequence[Handler] = () if on_event is None else (on_event,) if callable(on_event) else on_event
    for handler in reversed(handlers) if event.type in _ENDS else handlers:
        before = cancellations()
        try:
            answer = handler(event)
            if isawaitable(answer):
                await answer
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and cancellations() > before:
                raise  # it was meant for the step, not raised by what the handler awaited
            _logger.exception("on_event raised for %s of step %r of run %r", event.type, event.step_id, event.run_id)


async def ask_to_carry(on_event: OnEvent | None, event: StepEvent) -> dict[str, str]:
    """Send an event before its entry is recorded, and return the strings that handlers want in the entry's note."""
    await tell(on_event, event)
    return {key: text for key, text in event.carry.items() if type(key) is type(text) is str}
