"""A store's own thread for work on its files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar, TypeVarTuple

T = TypeVar("T")
Item = TypeVar("Item")
Args = TypeVarTuple("Args")
_Future = asyncio.Future[Any]
_Work = Callable[[str, Sequence[Any]], Sequence[Any]]
# A function to share and its name, then the item, its size and the caller's future. Without a function, the item is the work.
_Job = tuple[_Work | None, str, Any, int, _Future | None]
_Queue = SimpleQueue[list[_Job] | None]

_MOST_ITEMS: Final = 500
_MOST_BYTES: Final = 4 * 1024 * 1024
# Batches that are done before `finish` is called. Limited, because each may keep a file open.
_TOGETHER: Final = 16


class Worker:
    """Runs functions in a thread of its own, which starts when needed. Serves all threads and event loops.

    Calls `finish` after some functions have run and before it answers, and `at_end` when it is closed.
    """

    def __init__(self, name: str, *, finish: Callable[[], object] = lambda: None, at_end: Callable[[], object]) -> None:
        self._name: Final = name
        self._finish: Final = finish
        self._at_end: Final = at_end
        self._mutex: Final = threading.Lock()
        self._jobs: _Queue = SimpleQueue()
        self._gathered: Final[dict[asyncio.AbstractEventLoop, list[_Job]]] = {}
        self._thread: threading.Thread | None = None
        self._previous: threading.Thread | None = None

    def run(self, work: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Return a future with the result of `work`. Cancelling the future does not stop the work."""
        return self._ask(None, "", partial(work, *args), 0)

    def share(
        self, work: Callable[[str, Sequence[Item]], Sequence[T | Exception]], name: str, item: Item, size: int = 0
    ) -> asyncio.Future[T]:
        """Return a future with the result of `work` for `item`, or with the exception that `work` returns for it.

        `work` is called with `name` and all items that wait for it at the same time, limited by number and size.
        """
        return self._ask(work, name, item, size)

    def post(self, work: Callable[[], object]) -> None:
        """Run `work` after everything that was given before. Does not wait for it."""
        self._put([(None, "", work, 0, None)])

    async def close(self) -> None:
        """Wait for all work that was given, for `at_end`, and for the thread to end."""
        with self._mutex:
            thread, jobs = self._thread, self._jobs
            if thread is None:
                return
            caller: _Future = asyncio.get_running_loop().create_future()
            jobs.put([(None, "", self._at_end, 0, caller)])
            jobs.put(None)
            self._previous, self._thread, self._jobs = thread, None, SimpleQueue()
        await caller
        thread.join()

    def __del__(self) -> None:
        # The thread holds no reference to this object, so an unclosed store can be collected.
        # `at_end` is left to the thread: this may run at any moment, even inside a lock that `at_end` takes.
        if self._thread is not None:
            self._jobs.put([(None, "", self._at_end, 0, None)])
            self._jobs.put(None)

    def _ask(self, work: _Work | None, name: str, item: Any, size: int) -> _Future:
        """Give the thread all jobs of one turn of the loop together: waking it costs more than most jobs."""
        loop = asyncio.get_running_loop()
        caller = loop.create_future()
        job = work, name, item, size, caller
        if (jobs := self._gathered.get(loop)) is not None:
            jobs.append(job)
        else:
            self._gathered[loop] = [job]
            loop.call_soon(self._give, loop)
        return caller

    def _give(self, loop: asyncio.AbstractEventLoop) -> None:
        self._put(self._gathered.pop(loop))

    def _put(self, jobs: list[_Job]) -> None:
        with self._mutex:
            if self._thread is None:
                # A daemon, so that an unclosed store doesn't keep the program from ending.
                args = self._jobs, self._previous, self._finish, self._at_end
                self._thread = threading.Thread(target=_serve, args=args, name=self._name, daemon=True)
                self._thread.start()
            self._jobs.put(jobs)


def _serve(jobs: _Queue, previous: threading.Thread | None, finish: Callable[[], object], _at_end: Callable[[], object]) -> None:
    # Holds `at_end`, so that what it closes is not collected together with a store that nobody closed: Python 3.13 would warn.
    if previous is not None:
        previous.join()
    while _serve_round(jobs, finish):
        pass


def _serve_round(jobs: _Queue, finish: Callable[[], object]) -> bool:
    """Do all waiting jobs. Return False if the end was among them. Returning drops all references to them."""
    waiting = [jobs.get()]
    while not jobs.empty():
        waiting.append(jobs.get())
    batches = _batches(job for jobs_of_a_turn in waiting for job in jobs_of_a_turn or ())
    for start in range(0, len(batches), _TOGETHER):
        done = [(batch, _results(batch)) for batch in batches[start : start + _TOGETHER]]
        finish()
        _tell(done)
    return waiting[-1] is not None


def _batches(jobs: Iterable[_Job]) -> list[list[_Job]]:
    """Put jobs with the same function and name together. No job passes a job without a function."""
    batches: list[list[_Job]] = []
    growing: dict[object, tuple[list[_Job], int]] = {}
    for job in jobs:
        work, name, _, size, _ = job
        batch, total = growing.get((work, name), ([], 0))
        if not batch or len(batch) >= _MOST_ITEMS or total + size > _MOST_BYTES:
            batches.append(batch := [])
            total = 0
        batch.append(job)
        if work is None:
            growing.clear()
        else:
            growing[work, name] = batch, total + size
    return batches


def _results(batch: list[_Job]) -> Sequence[Any]:
    work, name, item, _, _ = batch[0]
    try:
        return [item()] if work is None else work(name, [item for _, _, item, _, _ in batch])
    except BaseException as error:
        return [error] * len(batch)


def _tell(done: Iterable[tuple[list[_Job], Sequence[Any]]]) -> None:
    """Answer the callers, all of a loop at once: waking a loop costs as much as an append."""
    answers: dict[asyncio.AbstractEventLoop, list[tuple[_Future, Any]]] = {}
    for batch, results in done:
        for (_, _, _, _, caller), result in zip(batch, results, strict=True):
            if caller is not None:
                answers.setdefault(caller.get_loop(), []).append((caller, result))
    for loop, some in answers.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(_settle, some)


def _settle(answers: Iterable[tuple[_Future, Any]]) -> None:
    for caller, result in answers:
        if caller.done():
            continue
        if isinstance(result, BaseException):
            caller.set_exception(result)
        else:
            caller.set_result(result)
