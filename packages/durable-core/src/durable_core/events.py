"""What a runner tells about its steps while they happen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Literal

import msgspec

from ._system.waits import cancellations
from .record import StepRecord

EventType = Literal["step:replay", "step:start", "step:success", "step:failure", "step:retry", "step:wait"]

_log = logging.getLogger("durable_core")


class StepEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to one step."""

    type: EventType
    run_id: str
    step_id: str
    name: str
    attempt: int
    record: StepRecord | None = None
    """The recorded entry, for `step:replay`, `step:success`, `step:failure` and `step:wait`."""
    error: BaseException | None = None
    """What the attempt raised, for `step:retry` and `step:failure`."""
    delay: float | None = None
    """Seconds until the next attempt, for `step:retry`."""


OnEvent = Callable[[StepEvent], Awaitable[Any] | Any]


async def deliver(handler: OnEvent, event: StepEvent) -> None:
    """Call `handler`, awaiting what it returns; what it raises is logged and does no harm."""
    before = cancellations()
    try:
        answer = handler(event)
        if isawaitable(answer):
            await answer
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and cancellations() > before:
            raise  # it was meant for the step, not raised by what the handler awaited
        _log.exception("on_event raised for %s of step %r of run %r", event.type, event.step_id, event.run_id)
