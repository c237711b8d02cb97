"""Blocking calls: a coroutine runs on an event loop while the calling thread waits.

Most calls run on one loop, which the library has in a thread of its own. In a run that a worker drives, they run on the worker's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from durable_core._running.attempt import Caller, Outcome, called
from durable_core._running.call import Call
from durable_core._running.race import in_thread
from durable_core._running.run import Run
from durable_core._system.faces import Home, Place, asked_at, in_stores_thread
from durable_core._system.waits import finished
from durable_core.errors import DurableError

T = TypeVar("T")
Ended = tuple[Any, BaseException | None]
"""The value that a function returned, and the exception that it raised."""
Send = Callable[[Callable[[], Any]], "asyncio.Future[Ended]"]
"""Makes a thread call a function. Called on the loop."""
Ask = Callable[["Asker"], Coroutine[Any, Any, T]]
"""Makes the coroutine that a thread waits for. Called in that thread."""

_INTERRUPTIBLE: Final = 0.2  # seconds that the main thread waits at a time, or Ctrl-C would not come through on Windows
_ENDS_PROGRAM: Final = (KeyboardInterrupt, SystemExit)

_loops: Final[dict[int, asyncio.AbstractEventLoop]] = {}
"""The library's loop of each process. A forked child makes its own: it doesn't have the thread."""
_function: Final[ContextVar[Function | None]] = ContextVar("durable_function", default=None)


def _own_loop() -> asyncio.AbstractEventLoop:
    """Return the library's loop in this process. Start it if needed."""
    if (loop := _loops.get(os.getpid())) is not None:
        return loop
    made = asyncio.new_event_loop()
    threading.Thread(target=_serve, args=(made,), name="durable-loop", daemon=True).start()
    if (loop := _loops.setdefault(os.getpid(), made)) is not made:  # another thread was first
        made.call_soon_threadsafe(made.stop)
    return loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    goes_on = True
    while goes_on:
        with suppress(*_ENDS_PROGRAM):  # raised by a task: the waiting thread gets it from the task, so ignore it here
            loop.run_forever()
            goes_on = False
    loop.close()


def call(ask: Ask[T], home: Home | None = None) -> T:
    """Run the coroutine of `ask` on the loop of `home`, or the library's, and wait for it in this thread.

    Raises `DurableError` if `why_not` has a reason, and `CancelledError` in a flow or contender that was cancelled.
    """
    return _wait(ask, home, _function.get())


def leave(ask: Ask[object], home: Home | None = None) -> None:
    """Like `call`, for leaving a context. Also works in a cancelled flow, and tries again if interrupted before it began."""
    has_begun = False

    async def leaving(asker: Asker) -> None:
        nonlocal has_begun
        has_begun = True
        await ask(asker)

    try:
        _wait(leaving, home, None)
    except BaseException:
        if not has_begun and why_not() is None:
            _wait(leaving, home, None)
        raise


def why_not() -> str | None:
    """Say why this thread must not wait for a loop. None if it may."""
    if asyncio._get_running_loop() is not None:
        return (
            "a call of durable_core.sync would block the event loop that runs here: instead of its Runner, flow, open_store and"
            " control, await those of durable_core"
        )
    if in_stores_thread.get():
        return (
            "a call of durable_core.sync inside the function of a transaction would wait for its own thread, the store's: use the"
            " connection that the function gets, and make the call in another step"
        )
    if sys.is_finalizing():  # the thread of the loop has stopped
        return "durable_core.sync was called after the interpreter began to shut down: close runners and iterators before that"
    return None


def _wait(ask: Ask[T], home: Home | None, function: Function | None) -> T:
    if (refusal := why_not()) is not None:
        raise DurableError(refusal)
    loop = home.loop if home is not None and home.pid == os.getpid() else _own_loop()
    asker = Asker(loop, function)
    return asker.wait(ask(asker))


class Asker(Caller):
    """Lets a thread wait for a coroutine, and call functions for the loop meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Function | None) -> None:
        self._loop: Final = loop
        self._function: Final = function
        self._jobs: Final[SimpleQueue[Callable[[], None] | None]] = SimpleQueue()
        self._sent: Final[set[asyncio.Future[Ended]]] = set()
        self._task: asyncio.Task[Any] | None = None
        self._is_over = self._gave_up = False
        self._turn: Final = _INTERRUPTIBLE if threading.current_thread() is threading.main_thread() else None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the loop until it ends. If this thread is interrupted, cancel it and wait for its end."""
        context = copy_context()
        context.run(_function.set, None)  # calls by the coroutine are not calls of the function
        context.run(asked_at.set, _place())
        try:
            self._loop.call_soon_threadsafe(self._begin, work, context)
            while not self._is_over:
                if (job := self._next()) is not None:
                    job()
        except BaseException:
            self._stop()
            if self._task is None:
                work.close()
            raise
        task, self._task = self._task, None
        assert task is not None
        try:
            value: T = task.result()
            return value
        finally:
            del task  # the traceback of its exception holds this frame

    def _stop(self) -> None:
        """Have the loop cancel the work, and wait for its end. Another interrupt ends only the waiting."""
        with suppress(RuntimeError):  # the loop was closed
            try:
                self._loop.call_soon_threadsafe(self._give_up)
                while not self._is_over:
                    self._next()
            except BaseException:
                self._loop.call_soon_threadsafe(self._give_up)  # the interrupt may have come before the first call
                raise

    def _next(self) -> Callable[[], None] | None:
        with suppress(Empty):
            return self._jobs.get(timeout=self._turn)
        return None

    def _begin(self, work: Coroutine[Any, Any, Any], context: Context) -> None:
        self._task = self._loop.create_task(work, context=context)
        self._task.add_done_callback(self._end)
        if self._function is not None:
            self._function.begin(self._task)

    def _end(self, task: asyncio.Task[Any]) -> None:
        if self._function is not None:
            self._function.end(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: an interrupted thread doesn't
        self._is_over = True
        self._jobs.put(None)

    def _give_up(self) -> None:
        if self._gave_up:
            return
        self._gave_up = True
        if self._task is None:  # the thread was interrupted before the task was made
            self._is_over = True
            self._jobs.put(None)
            return
        self._task.cancel()
        for future in [*self._sent]:
            future.cancel()

    def send(self, fn: Callable[[], Any]) -> asyncio.Future[Ended]:
        """Have the thread call `fn`. If `fn` raises KeyboardInterrupt or SystemExit, the thread raises it at once."""
        future: asyncio.Future[Ended] = self._loop.create_future()
        if self._gave_up:
            future.cancel()
            return future
        self._sent.add(future)
        future.add_done_callback(self._sent.discard)
        self._jobs.put(partial(_work, self._loop, future, fn, _ENDS_PROGRAM))
        return future

    async def call(self, run: Run, call: Call, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        context = copy_context()
        with in_thread():
            future = self.send(partial(context.run, called, run, call, fn, args))
            cancelled = await finished(future)
        outcome, error = future.result()
        if error is not None:
            raise error
        assert isinstance(outcome, Outcome)
        outcome.cancelled = cancelled
        return outcome


class Function:
    """The plain function of a flow or contender, which a thread calls for the loop, and its blocking calls."""

    def __init__(self) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._is_cancelled = False
        self._calls: Final[set[asyncio.Task[Any]]] = set()
        self._count_in_thread: Callable[[int], None] = lambda more: None

    async def outcome(self, send: Send, fn: Callable[[], T], *, abandons: bool = False) -> T:
        """Have a thread call `fn`, and return its result.

        If this task is cancelled, cancel the blocking calls of `fn` and wait for its end; with `abandons`, don't wait.
        """
        context = copy_context()
        context.run(_function.set, self)
        with in_thread() as self._count_in_thread:
            future = send(partial(context.run, fn))
            if abandons:
                try:
                    await asyncio.wait((future,))
                except asyncio.CancelledError:
                    self._cancel()
                    raise
            cancelled = await finished(future, on_cancel=self._cancel)
        value, error = future.result()
        try:
            if cancelled is not None and isinstance(error, asyncio.CancelledError):
                raise cancelled
            if error is not None:
                raise error
            returned: T = value
            return returned
        finally:
            del error  # its traceback holds this frame

    def _cancel(self) -> None:
        self._is_cancelled = True
        for task in [*self._calls]:
            task.get_loop().call_soon_threadsafe(_cancel_once, task)  # the call may run on another loop than this function's

    def begin(self, task: asyncio.Task[Any]) -> None:
        """Note that the function waits for a blocking call. Cancel the call at once if the function is cancelled."""
        if task.get_loop() is self._loop:
            self._count_in_thread(-1)
        self._calls.add(task)
        if self._is_cancelled:
            _cancel_once(task)

    def end(self, task: asyncio.Task[Any]) -> None:
        """Note that a blocking call of the function has ended."""
        if task.get_loop() is self._loop:
            self._count_in_thread(1)
        self._calls.discard(task)


def _cancel_once(task: asyncio.Task[Any]) -> None:
    if not task.cancelling():
        task.cancel()


def in_new_thread(fn: Callable[[], Any]) -> asyncio.Future[Ended]:
    """Have a new thread call `fn`."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Ended] = loop.create_future()
    threading.Thread(target=_work, args=(loop, future, fn, ()), name="durable-function", daemon=True).start()
    return future


def _work(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Ended],
    fn: Callable[[], Any],
    leaving: tuple[type[BaseException], ...],
) -> None:
    """Call `fn`, and pass its result or exception to the loop. Raise exceptions of the types in `leaving` here instead."""
    ended: Ended
    try:
        ended = fn(), None
    except leaving:
        raise
    except BaseException as error:
        ended = None, error
    with suppress(RuntimeError):  # the loop was closed, and nobody waits
        loop.call_soon_threadsafe(_tell, future, ended)


def _tell(future: asyncio.Future[Ended], ended: Ended) -> None:
    if not future.done():
        future.set_result(ended)


def _place() -> Place:
    """Return the line outside of the library that made this call."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith("durable_core.") and frame.f_back is not None:
        frame = frame.f_back
    shown = frame.f_globals.setdefault("__warningregistry__", {})
    return Place(frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__", "<string>"), shown)
