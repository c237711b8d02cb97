"""The one thread in which a store touches its files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")
_Job = tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any] | None"]
_Queue = SimpleQueue["_Job | None"]


class Worker:
    """Does what it is given, one thing after another, in a thread of its own that starts when it is needed."""

    def __init__(self, *, at_end: Callable[[], object]) -> None:
        self._at_end: Final = at_end
        self._jobs: _Queue = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: threading.Thread | None = None

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """Return what `work` returns. If this is cancelled, the work is done all the same."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put((work, args, future))
        return await future

    def post(self, work: Callable[[], object]) -> None:
        """Have `work` done after all that was given before, and don't wait for it."""
        self._put((work, (), None))

    async def close(self) -> None:
        """Wait until all that was given is done, then `at_end`, and then the thread's end."""
        if self._thread is None:
            self._at_end()
            return
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ending, jobs = self._thread, self._jobs
        jobs.put((self._at_end, (), future))
        jobs.put(None)
        self._ended, self._thread, self._jobs = ending, None, SimpleQueue()
        await future
        ending.join()

    def __del__(self) -> None:
        # The thread knows its queue and not this object, so that a store which nobody closed ends when it is forgotten.
        # `at_end` is left to it: this may run at any moment, even inside a lock that `at_end` takes.
        if self._thread is not None:
            self._jobs.put((self._at_end, (), None))
            self._jobs.put(None)

    def _put(self, job: _Job) -> None:
        if self._thread is None:
            # A daemon, so that such a store doesn't keep the program from ending either.
            self._thread = threading.Thread(target=_work, args=(self._jobs, self._ended), name="durable-file", daemon=True)
            self._thread.start()
        self._jobs.put(job)


def _work(jobs: _Queue, before: threading.Thread | None) -> None:
    if before is not None:
        before.join()
    while (job := jobs.get()) is not None:
        work, args, future = job
        result, error = None, None
        try:
            result = work(*args)
        except BaseException as raised:
            error = raised
        if future is not None:
            with suppress(RuntimeError):  # the loop was closed: nobody waits
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
        del job, work, args, future, result, error  # or they would live until the next job


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
