"""Who acts on a run in this process tells the runner that works on it here, so that nobody waits for the next look."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

_counts: Final = [0] * 1024
"""How often anybody acted on a run, by a hash of its id: a run may look once for another's sake."""
_listeners: Final[dict[str, dict[Callable[[], None], asyncio.AbstractEventLoop]]] = {}
_mutex: Final = threading.Lock()


def count(run_id: str) -> int:
    """Return a number that grows whenever anybody acts on the run from this process."""
    return _counts[hash(run_id) % len(_counts)]


def tell(run_id: str) -> None:
    """Tell every runner of the run in this process that there is something to look for. Works from any thread."""
    with _mutex:
        _counts[hash(run_id) % len(_counts)] += 1
    wake(run_id)


def wake(run_id: str) -> None:
    """Wake every wait of the run in this process."""
    with _mutex:
        listeners = [*_listeners.get(run_id, {}).items()]
    for listener, loop in listeners:
        with suppress(RuntimeError):  # its loop was closed
            loop.call_soon_threadsafe(listener)


@contextmanager
def heard(run_id: str, listener: Callable[[], None]) -> Iterator[None]:
    """Have `listener` called on the running loop whenever `tell` is, for as long as the context lasts."""
    with _mutex:
        _listeners.setdefault(run_id, {})[listener] = asyncio.get_running_loop()
    try:
        yield
    finally:
        with _mutex:
            del _listeners[run_id][listener]
            if not _listeners[run_id]:
                del _listeners[run_id]
