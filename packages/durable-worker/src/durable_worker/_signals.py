"""Handles the signals that ask a program to stop."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from durable_core.errors import DurableError


@contextmanager
def stop_signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` in the running loop at each SIGTERM, SIGINT and, on Windows, Ctrl-Break, instead of their usual effect."""
    if threading.current_thread() is not threading.main_thread():
        raise DurableError("serve() must run in the main thread, where signals arrive; elsewhere write `async with worker:`")
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}
    # With `signal.signal`, because a loop on Windows accepts no handlers.
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if (number := getattr(signal, name, None)) is not None:
            before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
