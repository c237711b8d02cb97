"""News within this process: an act on a run notifies the runner that works on it here, which then needn't poll."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from durable_core.record import StepRecord
from durable_core.store import Store

if TYPE_CHECKING:
    from .chain import Append


class News:
    """The acts on one run in this process: their number, and who listens for the next. Lives as long as a runner."""

    def __init__(self) -> None:
        self.count = 0
        self._listeners: Final[dict[Callable[[], None], asyncio.AbstractEventLoop]] = {}

    def wake(self) -> None:
        """Wake every wait of the run in this process. Works from any thread."""
        with _mutex:
            listeners = [*self._listeners.items()]
        for listener, loop in listeners:
            with suppress(RuntimeError):  # its loop was closed
                loop.call_soon_threadsafe(listener)

    @contextmanager
    def calling(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` on the running loop whenever the waits are woken, until the context ends."""
        with _mutex:
            self._listeners[listener] = asyncio.get_running_loop()
        try:
            yield
        finally:
            with _mutex:
                del self._listeners[listener]


_news: Final[WeakValueDictionary[str, News]] = WeakValueDictionary()
_mutex: Final = threading.Lock()


def news_of(run_id: str) -> News:
    """Return the news of a run, which all its runners in this process share."""
    with _mutex:
        return _news.setdefault(run_id, News())


def tell(run_id: str) -> None:
    """Notify every runner of the run in this process. Works from any thread."""
    with _mutex:
        news = _news.get(run_id)
        if news is not None:
            news.count += 1
    if news is not None:
        news.wake()


def published(run_id: str) -> str:
    """Return the name under which followers of what the run publishes are woken. No run can have this id."""
    return f"{run_id}\0published"


def telling(store: Store) -> Append:
    """Return the store's `append` as one that also notifies runners of the run in this process."""

    async def append(record: StepRecord) -> StepRecord:
        holder = await store.append(record)
        tell(record.run_id)
        return holder

    return append
