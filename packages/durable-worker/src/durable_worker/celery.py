"""Wake-ups as Celery tasks: Celery's workers drive the runs, and only a sweep polls the store."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from weakref import WeakSet

from celery import Celery, signals

from durable_core import open_store
from durable_core.engine import AnyFlow, holding
from durable_core.errors import RunBusy, StoreError
from durable_core.events import OnEvent
from durable_core.options import duration
from durable_core.store import OpenableStore
from durable_core.stores.memory import MemoryStore

from ._carried import SOON, CarriedStore, Send
from ._ends import OnEnd
from ._on_demand import OnDemand
from .worker import Worker

__all__ = ["Carrier", "attach"]

GO_ON: Final = "durable.go_on"
SWEEP: Final = "durable.sweep"
_PAGE: Final = 500
_logger: Final = logging.getLogger("durable_worker")
_T = TypeVar("_T")
_attached: Final[WeakSet[Celery]] = WeakSet()


def attach(
    app: Celery,
    store_url: str,
    flows: Collection[AnyFlow],
    *,
    sweep_every: float | timedelta = 60,
    visibility_timeout: float | timedelta = 60,
    max_crashes: int = 5,
    adopt: timedelta = timedelta(days=1),
    shutdown_timeout: float | timedelta = 30,
    aliases: Mapping[str, AnyFlow] | None = None,
    on_event: OnEvent | None = None,
) -> Carrier:
    """Let the workers of a Celery application drive the runs of these flows. Return an object that opens the store elsewhere.

    Call it once, where the application is made, after it is configured. It adds two tasks. `durable.go_on(flow, run_id)` looks
    at one run and drives it as far as it can. `durable.sweep()` finds runs for which no task was sent or whose task was lost; it
    is added to beat's schedule, every `sweep_every` seconds, so beat must run.

    A run that another process drives is looked at again after `visibility_timeout` seconds at the latest. The other arguments
    are those of `Worker`. Celery's own `--concurrency` sets how many runs are driven at the same time.
    """
    if not isinstance(app, Celery):
        raise TypeError(f"app must be a Celery application, not {app!r}")
    if app in _attached:
        raise ValueError(f"attach was already called for {app!r}; its workers serve one store, so make a second application")
    if isinstance(open_store(store_url), MemoryStore):
        raise StoreError("each process would have its own store in memory; give attach the URL of a store that processes share")
    interval = duration("sweep_every", sweep_every, zero=False)

    def worker(store: OpenableStore) -> Worker:
        return Worker(
            store,
            flows,
            visibility_timeout=visibility_timeout,
            max_crashes=max_crashes,
            adopt=adopt,
            shutdown_timeout=shutdown_timeout,
            aliases=aliases,
            on_event=on_event,
        )

    worker(open_store(store_url))  # raises now if something is wrong, instead of in the first task
    _attached.add(app)
    return Carrier(app, store_url, worker, interval)


class Carrier:
    """The result of `attach`, which opens the store so that wake-ups are sent as tasks."""

    def __init__(self, app: Celery, store_url: str, worker: Callable[[OpenableStore], Worker], sweep_every: float) -> None:
        self._app: Final = app
        self._store_url: Final = store_url
        self._worker: Final = worker
        self._sweep_every: Final = sweep_every
        self._since: Final = datetime.now(UTC)
        self._handlers: Final[list[OnEnd]] = []
        self._process: _Process | None = None
        self._mutex: Final = threading.Lock()
        self._pipe: tuple[int, int] | None = None
        """Shared by the processes of a pool. A byte in it tells them to stop."""
        # Early, repeated and lost tasks do no harm. So acknowledge a task after it has ended, even with an error.
        options = {
            "shared": False,  # with other applications of the same process
            "acks_late": True,
            "reject_on_worker_lost": True,
            "acks_on_failure_or_timeout": True,
            "ignore_result": True,
            "serializer": "json",
            "rate_limit": None,
        }

        def go_on(flow: str, run_id: str) -> None:
            self._look(flow, run_id)

        def sweep() -> None:
            self._sweep()

        self._go_on: Final = app.task(go_on, name=GO_ON, **options)
        app.task(sweep, name=SWEEP, **options)
        # Drop a sweep that waited in the queue until the next one is due: it would only send tasks twice.
        app.add_periodic_task(sweep_every, app.signature(SWEEP), name=SWEEP, expires=sweep_every)
        signals.worker_init.connect(self._on_start, weak=False)
        signals.worker_shutting_down.connect(self._on_stop, weak=False)
        signals.worker_process_shutdown.connect(self._on_exit, weak=False)
        signals.worker_shutdown.connect(self._on_exit, weak=False)

    def open_store(self) -> OpenableStore:
        """Make the store, for `async with`. A run that is started with it, or can continue because of it, gets a task at once.

        Otherwise it is the store of the URL. If the broker is unreachable, no call fails: the wake-up remains in the store, or
        the sweep finds the run.
        """
        return self._new_store()

    def on_end(self, fn: OnEnd) -> OnEnd:
        """Call `fn` in the worker, at least once, with the status of each run that ends there. Also a decorator."""
        self._handlers.append(fn)
        return fn

    def _new_store(self) -> CarriedStore:
        return CarriedStore(open_store(self._store_url), self._send, self._sweep_every)

    def _send(self, flow: str, run_id: str, at: datetime) -> None:
        later = at > datetime.now(UTC)
        if later and self._app.conf.task_always_eager:
            return  # such an application calls a task at once, and would do so again and again until its time
        self._go_on.apply_async((flow, run_id), eta=at if later else None)

    def _look(self, flow: str, run_id: str) -> None:
        """Look at one run. This is the body of a task."""
        try:
            process = self._here()
            process.wait(process.loop.look(run_id, flow))
        except Exception:
            # As far as we know, nothing was done, so look again before this task is acknowledged.
            self._send(flow, run_id, datetime.now(UTC) + timedelta(seconds=SOON * self._sweep_every))
            raise

    def _sweep(self) -> None:
        """Send tasks for all runs that could continue. This is the body of a task."""
        process = self._here()
        process.wait(process.sweep(self._send))

    def _here(self) -> _Process:
        """Return this process's thread and store. They are made when they are first needed, and again after a fork."""
        with self._mutex:
            if self._process is None or self._process.pid != os.getpid():
                store = self._new_store()
                worker = self._worker(store)
                for handler in self._handlers:
                    worker.on_end(handler)
                stop_pipe = None if self._pipe is None else self._pipe[0]
                loop = OnDemand(worker._loop, since=self._since, longest=SOON * self._sweep_every)
                self._process = _Process(loop, store, stop_pipe)
            return self._process

    def _on_start(self, sender: Any, **_: object) -> None:
        pool = sender.pool_cls if isinstance(sender.pool_cls, str) else sender.pool_cls.__module__
        if "gevent" in pool or "eventlet" in pool:
            sys.exit("durable drives runs in a thread with an event loop, which green threads disturb: use another --pool")
        self._pipe = os.pipe()

    def _on_stop(self, **_: object) -> None:
        if self._pipe is not None:
            os.write(self._pipe[1], b".")  # nobody reads the byte, so that all processes see it

    def _on_exit(self, **_: object) -> None:
        if self._process is not None and self._process.pid == os.getpid():
            self._process.close()
            self._process = None


class _Process:
    """The state of one worker process: a thread with an event loop, and an open store in it."""

    def __init__(self, loop: OnDemand, store: CarriedStore, stop_pipe: int | None) -> None:
        self.pid: Final = os.getpid()
        self.loop: Final = loop
        self._store: Final = store
        self._stop_pipe: Final = stop_pipe
        self._events: Final = asyncio.new_event_loop()
        self._ending: asyncio.Task[None] | None = None
        self._thread: Final = threading.Thread(target=self._events.run_forever, name="durable", daemon=True)
        self._thread.start()
        try:
            self.wait(self._begin())
        except BaseException:
            self._events.call_soon_threadsafe(self._events.stop)
            raise

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do some work in the thread, and wait for it. If the caller is interrupted, the work is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._events)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Hand back the runs, and close the store."""
        self.wait(self._end())
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join()
        self._events.close()

    async def sweep(self, send: Send) -> None:
        """Send a task for each wake-up that is due in the store, and then for each run that could continue."""
        loop, now = self.loop, self.loop.clock.now()
        hidden = timedelta(seconds=loop.settings.visibility_timeout)
        while taken := await self._store.take_wakeups(loop.flows.keys(), limit=_PAGE, visibility_timeout=hidden):
            for flow, run_id in dict.fromkeys((each.flow, each.run_id) for each in taken):
                await asyncio.to_thread(send, flow, run_id, now)
            await self._store.clear_wakeups(taken)
        with suppress(RunBusy):
            async with holding(self._store, "$sweep"):
                async for record in loop.due():
                    await asyncio.to_thread(send, record.name, record.run_id, now)

    async def _begin(self) -> None:
        await self._store.__aenter__()
        if self._stop_pipe is not None:
            self._events.add_reader(self._stop_pipe, self._stop)

    def _stop(self) -> None:
        assert self._stop_pipe is not None
        self._events.remove_reader(self._stop_pipe)
        self._ending = self._events.create_task(self.loop.end())

    async def _end(self) -> None:
        if self._ending is None:
            self._ending = self._events.create_task(self.loop.end())
        await self._ending
        await self._store.__aexit__(None, None, None)
