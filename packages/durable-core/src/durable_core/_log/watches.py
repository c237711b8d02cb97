"""Notifications from the store: all that wait for one run on an event loop share one watch of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from itertools import count
from typing import Final

from durable_core._system.waits import cancellations
from durable_core.options import exponential
from durable_core.store import Store, SupportsWatch, watch_of

WATCHED_SECONDS: Final = 30.0
"""Seconds between looks into a store that sends notifications."""
_AFTER: Final = 0.02  # seconds: many waits, such as short delays, are over by then, and a watch is a request or two
_next_try: Final = exponential(1, limit=30)
_logger: Final = logging.getLogger("durable_core")


class Watch:
    """The notifications of a store about one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id: Final = run_id
        self.listens = False
        """True once the store notifies of each act. Until then, and if it can't, waits look as often as without a watch."""
        self.tells: Final[dict[Callable[[], None], None]] = {}
        """The callbacks of the waits."""
        self.task: asyncio.Task[None] | None = None

    def tell(self, *, listens: bool) -> None:
        """Make all waits look."""
        self.listens = listens
        for tell in [*self.tells]:
            tell()


class Watches:
    """The watches of one store on one event loop."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store  # kept, because the registry knows it by its id
        self._ability: Final = watch_of(store)
        self._of_runs: Final[dict[str, Watch]] = {}
        self._coming: Final[dict[Watch, None]] = {}
        """The watches that begin next, all at the same time."""
        self._is_logged = False
        """True once an exception of one of them was logged."""

    def __bool__(self) -> bool:
        return bool(self._of_runs)

    def take(self, run_id: str) -> Watch:
        """Return the watch of a run. A new one begins soon."""
        if (watch := self._of_runs.get(run_id)) is None:
            watch = self._of_runs[run_id] = Watch(run_id)
            if self._ability is not None:
                if not self._coming:
                    # In a context of its own, because that of the first wait would keep its run alive while any other waits.
                    asyncio.get_running_loop().call_later(_AFTER, self._begin, self._ability, context=Context())
                self._coming[watch] = None
        return watch

    def end(self, watch: Watch) -> None:
        """End a watch that no wait uses any more."""
        del self._of_runs[watch.run_id]
        self._coming.pop(watch, None)
        if watch.task is not None:
            with suppress(RuntimeError):  # its loop was closed
                watch.task.cancel()

    def _begin(self, ability: SupportsWatch) -> None:
        for watch in self._coming:
            watch.task = asyncio.create_task(self._listen(ability, watch), name="durable-watch")
        self._coming.clear()

    async def _listen(self, ability: SupportsWatch, watch: Watch) -> None:
        """Watch until the store says that it can't notify; try again after an error."""
        for tries in count(1):
            before = cancellations()
            try:
                async for _ in ability.watch(watch.run_id):
                    watch.tell(listens=True)
                return
            except (Exception, asyncio.CancelledError) as error:
                if cancellations() > before:
                    raise
                if not self._is_logged:
                    _logger.warning("could not watch run %r, trying again and looking meanwhile: %r", watch.run_id, error)
                self._is_logged = True
            finally:
                if watch.listens:  # waits must look more often from now on
                    watch.tell(listens=False)
            await asyncio.sleep(_next_try(tries))


_all: Final[dict[tuple[asyncio.AbstractEventLoop, int], Watches]] = {}


@contextmanager
def watching(store: Store, run_id: str, tell: Callable[[], None]) -> Iterator[Watch]:
    """Call `tell` when the run may have changed: the store began to listen, reported an act, or stopped listening."""
    key = asyncio.get_running_loop(), id(store)
    if (watches := _all.get(key)) is None:
        for closed in [each for each in [*_all] if each[0].is_closed()]:
            _all.pop(closed, None)
        watches = _all[key] = Watches(store)
    watch = watches.take(run_id)
    watch.tells[tell] = None
    try:
        yield watch
    finally:
        del watch.tells[tell]
        if not watch.tells:
            watches.end(watch)
            if not watches:
                _all.pop(key, None)
