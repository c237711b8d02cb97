"""Reports the ends of runs to the handlers of `on_end`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Final

from durable_core.control import RunStatus, status
from durable_core.engine import cancellations
from durable_core.record import StepRecord
from durable_core.store import Store

OnEnd = Callable[[RunStatus], Awaitable[object] | object]
"""Called with the status of a run that has ended."""
_MOST: Final = 10_000
_logger: Final = logging.getLogger("durable_worker")


class Ends:
    """The handlers, and the ends that they already know."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store
        self.handlers: Final[list[OnEnd]] = []
        self._told: Final[dict[str, str]] = {}
        """The last entries of runs, by run id, for ends that were reported recently."""

    async def tell(self, flow: StepRecord) -> None:
        """Call the handlers, unless they already know this end. Their exceptions are logged and ignored."""
        if not self.handlers or self._told.get(flow.run_id) == flow.id:
            return
        run = await status(self._store, flow.run_id)
        for handler in self.handlers:
            try:
                answer = handler(run)
                if isawaitable(answer):
                    await answer
            except (Exception, asyncio.CancelledError):
                if cancellations():
                    raise
                _logger.exception("on_end raised for run %r", run.run_id, extra={"run_id": run.run_id})
        self._told[flow.run_id] = flow.id
        if len(self._told) > _MOST:
            del self._told[next(iter(self._told))]
