"""What a step's function may know of the step it runs in."""

from __future__ import annotations

from contextvars import ContextVar
from hashlib import blake2b
from typing import Final

import msgspec

from ._system.roots import DurableError, NestedStep


class StepContext(msgspec.Struct):
    """The step that is running: its ids, which attempt this is, and a key for the services that it calls."""

    run_id: str
    step_id: str
    attempt: int
    _runner: object
    _generation: int
    _active: bool = True

    @property
    def idempotency_key(self) -> str:
        """A key to send along, so that the service called recognises a repetition.

        The same for every attempt and after a crash; a new one once the step was reopened, because services replay
        the answer, a failure too, that they once gave for a key.
        """
        name = f"{self.run_id}\0{self.step_id}\0{self._generation}"
        return blake2b(name.encode(), digest_size=16, person=b"durable-step").hexdigest()

    def __repr__(self) -> str:
        return f"StepContext(run_id={self.run_id!r}, step_id={self.step_id!r}, attempt={self.attempt})"

    def refuse(self, runner: object, step_id: str) -> None:
        """Raise `NestedStep` if `runner` is this step's own; a task that the step left behind may start steps."""
        if self._active and self._runner is runner:
            raise NestedStep(
                f"step {step_id!r} was started inside step {self.step_id!r} of the same runner; call it after that one,"
                " or make it a plain function call"
            )


driven: Final[ContextVar[object | None]] = ContextVar("durable_flow", default=None)
"""The run whose flow is running here."""
running: Final[ContextVar[StepContext | None]] = ContextVar("durable_step", default=None)


def current_step() -> StepContext:
    """Return the step in whose function this is called. Raises `DurableError` outside of one."""
    context = running.get()
    if context is None or not context._active:
        raise DurableError("current_step() was called outside a step; it works inside the function given to runner.step()")
    return context
