"""What a step's function can find out about its step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ._system.roots import DurableError, NestedStep

if TYPE_CHECKING:
    from .runner import Runner


class StepContext(msgspec.Struct):
    """The running step: its ids, the number of the attempt, and an idempotency key for the services that it calls."""

    run_id: str
    step_id: str
    attempt: int
    _runner: Any
    _generation: int
    _active: bool = True

    @property
    def idempotency_key(self) -> str:
        """A key to send with a request, so that the service recognises a repeated one.

        It is the same for every attempt and after a crash. It changes when the step is reopened, because services repeat
        their earlier answer for a key, even a failure.
        """
        name = f"{self.run_id}\0{self.step_id}\0{self._generation}"
        return blake2b(name.encode(), digest_size=16, person=b"durable-step").hexdigest()

    def __repr__(self) -> str:
        return f"StepContext(run_id={self.run_id!r}, step_id={self.step_id!r}, attempt={self.attempt})"

    def refuse(self, runner: object, step_id: str) -> None:
        """Raise `NestedStep` if `runner` runs this step. A task that outlives the step may start steps."""
        if self._active and self._runner is runner:
            raise NestedStep(
                f"step {step_id!r} was started inside step {self.step_id!r} of the same runner; start it after that step,"
                " or call its function directly"
            )


running: Final[ContextVar[StepContext | None]] = ContextVar("durable_step", default=None)


def current_step() -> StepContext:
    """Return the running step. Raises `DurableError` outside a step's function."""
    context = running.get()
    if context is None or not context._active:
        raise DurableError("current_step() was called outside a step; it works inside the function given to runner.step()")
    return context


def in_step() -> bool:
    """Return True inside a step's function."""
    context = running.get()
    return context is not None and context._active


_flow_runner: Final[ContextVar[Runner | None]] = ContextVar("durable_runner", default=None)
"""The runner with which a flow's function was called here."""


@contextmanager
def flow_of(runner: Runner) -> Iterator[None]:
    """Let `current_runner` return `runner` in the function of a flow."""
    token = _flow_runner.set(runner)
    try:
        yield
    finally:
        _flow_runner.reset(token)


def driven_run() -> str | None:
    """Return the id of the run whose flow is running here; None outside a flow, and in a step's function."""
    runner = _flow_runner.get()
    return None if runner is None or runner._run.flow is None or running.get() is not None else runner.run_id


def current_runner() -> Runner:
    """Return the runner whose flow or step is running here. Raises `DurableError` outside both.

    Inside a step, only read from it, for example its `run_id`: a step can't start another step.
    """
    context = running.get()
    runner: Runner | None = context._runner.face() if context is not None and context._active else _flow_runner.get()
    if runner is None:
        raise DurableError("current_runner() was called outside a flow or a step, or the runner no longer exists")
    return runner
