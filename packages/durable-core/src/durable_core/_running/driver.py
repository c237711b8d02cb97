"""The driver of a run, as the run sees it: a program that calls its flow once, or a worker."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from durable_core._log.wakeups import wake
from durable_core.context import StepContext
from durable_core.errors import StepDrift
from durable_core.record import StepRecord
from durable_core.store import Store

if TYPE_CHECKING:
    from .run import Run

Limit = tuple[str, int]
"""A name, and how many runs with that name may be driven at the same time."""


class Driver:
    """The behaviour of a program that drives a run by itself. A worker overrides it."""

    async def suspends(self, store: Store, flow: StepRecord, until: datetime) -> None:
        """Make sure that somebody looks at the run at `until`. Called before an entry says that it waits until then."""
        await wake(store, flow, until)

    def hands_back(self) -> bool:
        """Return True if a run that is cancelled now is handed to others because the program shuts down."""
        return False

    def limited(self, store: Store, limit: Limit) -> AbstractAsyncContextManager[object]:
        """Hold one place of a limit while a child is driven. Entering raises `RunBusy` if all places are taken."""
        return nullcontext()

    def begins(self, step: StepContext) -> None:
        """Called before the function of a step is called, in this run or in a child."""
        return

    async def stays(self, store: Store, pairs: Sequence[tuple[str, str]], until: datetime | None) -> bool:
        """Return True if a run in which everything waits stays in this process; otherwise it is suspended.

        `pairs` are the runs and steps for which it waits. If this returns True, it has acted on one of them, or time has passed.
        """
        return False


ALONE = Driver()


class Replay(Protocol):
    """A replay of a run, which checks today's code against its log."""

    async def stop(self, run: Run, step_id: str) -> NoReturn:
        """Suspend the run, before a step's function is called."""

    def drifts(self, what: Literal["kind", "arguments"], drift: StepDrift) -> None:
        """Note that a step was called as another kind, or with other arguments, than recorded."""
