"""An event loop in a thread, so that leases are renewed even while a step blocks the one that the steps run on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class BackgroundLoop:
    """Started by the first task given to it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def start(self, task: Coroutine[Any, Any, None]) -> Future[None]:
        if self._loop is None or self._pid != os.getpid():
            self._pid, self._loop = os.getpid(), asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="durable-s3-leases", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    async def close(self) -> None:
        """Cancel what is left, and stop."""
        loop, self._loop = self._loop, None
        thread, self._thread = self._thread, None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_cancel_all(), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
