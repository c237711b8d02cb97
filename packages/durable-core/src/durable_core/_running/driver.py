"""Who drives a run, as the run sees it: a program that calls its flow once, or a worker."""

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
"""A name, and how many runs of that name may be driven at the same time."""


class Driver:
    """What a program does that drives a run by itself; a worker overrides it."""

    async def suspends(self, store: Store, flow: StepRecord, until: datetime) -> None:
        """See that somebody looks at the run at `until`, before an entry says that it waits until then."""
        await wake(store, flow, until)

    def hands_back(self) -> bool:
        """Tell whether a run that is cancelled now is handed to others, since the program shuts down."""
        return False

    def limited(self, store: Store, limit: Limit) -> AbstractAsyncContextManager[object]:
        """Hold one of the places of a limit while a child is driven; entering raises `RunBusy` where all are taken."""
        return nullcontext()

    def begins(self, step: StepContext) -> None:
        """Hear that the function of a step is about to be called, in this run or in a child."""
        return

    async def stays(self, store: Store, pairs: Sequence[tuple[str, str]], until: datetime | None) -> bool:
        """Tell whether a run stays in this process in which all that goes on waits; it is suspended else.

        `pairs` are the runs and steps that are waited for. Who returns True has acted on one of them, or let time pass.
        """
        return False


ALONE = Driver()


class Replay(Protocol):
    """Who replays a run to see what today's code makes of its log."""

    async def stop(self, run: Run, step_id: str) -> NoReturn:
        """Suspend the run, before a step's function is called."""

    def drifts(self, what: Literal["kind", "arguments"], drift: StepDrift) -> None:
        """Take note that a step is asked for as another kind, or with other arguments, than was recorded."""
