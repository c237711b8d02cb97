"""Looking for decisions on behalf of all that wait: the waits of one store share one request a round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from durable_core._log import news
from durable_core._running.cancelling import poll_seconds
from durable_core._running.run import Run
from durable_core._system.waits import cancellations
from durable_core.errors import CorruptLog, DurableError
from durable_core.record import StepRecord
from durable_core.store import Store, polling_of

_LONGEST: Final = 30.0  # seconds of a round
_logger: Final = logging.getLogger("durable_core")


class Listener:
    """One wait that hears when there is something to look at."""

    def __init__(self, run: Run, step_id: str) -> None:
        self.run: Final = run
        self.step_id: Final = step_id
        self.heard: Final = asyncio.Event()
        """Set when somebody acted, or the runner must stop."""
        self.must_look = False
        """Whether the wait has to ask the store itself: somebody acted in this process, or a log is damaged."""

    def hear(self) -> None:
        """Wake the wait, which then asks the store."""
        self.must_look = True
        self.heard.set()

    @property
    def step_ids(self) -> tuple[str, str]:
        """The steps that it looks at: its own, and that which says whether the run was cancelled."""
        return self.step_id, self.run.cancelled_by

    def known(self) -> list[tuple[str, str, int]]:
        """Return what this wait knows of its step and of the run's cancellation."""
        found = [(step_id, self.run.log.latest(step_id)) for step_id in self.step_ids]
        return [(self.run.id, step_id, -1 if latest is None else latest.revision) for step_id, latest in found]


class Looker:
    """Looks for the waits of one store on one event loop."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store
        self._seconds: Final = poll_seconds(store)
        self.listeners: Final[dict[Listener, None]] = {}
        self.task: Final = asyncio.create_task(self._rounds(), name="durable-looks")

    async def _rounds(self) -> None:
        away = False
        while True:
            await asyncio.sleep(self._seconds)
            listeners = [*self.listeners]
            for listener in listeners:
                try:
                    listener.run.lock.check()
                except DurableError:  # its lock was lost: the wait raises that itself
                    listener.heard.set()
                if listener.run.log.cancelled is not None:
                    listener.heard.set()
            before = cancellations()
            try:
                async with asyncio.timeout(_LONGEST):
                    found = await self._newer([*{pair: None for listener in listeners for pair in listener.known()}])
            except CorruptLog:
                for listener in listeners:  # whichever waits in the damaged run raises that itself
                    listener.hear()
                continue
            except (Exception, asyncio.CancelledError) as error:
                if cancellations() > before:
                    raise
                if not away:
                    _logger.warning("could not look for what %d waits wait for, trying again: %r", len(listeners), error)
                away = True
                continue
            away = False
            newest = {(record.run_id, record.step_id): record for record in found}
            for listener in listeners if newest else ():
                for step_id in listener.step_ids:
                    if record := newest.get((listener.run.id, step_id)):
                        listener.run.log.add(record)
                        listener.heard.set()
                        listener.must_look |= step_id != listener.step_id  # the run was cancelled, or another drives it

    async def _newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        polling = polling_of(self._store)
        if polling is not None:
            return await polling.newer(known)
        latest = await asyncio.gather(*(self._store.get(run_id, step_id) for run_id, step_id, _ in known))
        return [record for record, (_, _, revision) in zip(latest, known, strict=True) if record and record.revision > revision]


_lookers: Final[dict[tuple[asyncio.AbstractEventLoop, int], Looker]] = {}


@contextmanager
def listening(run: Run, step_id: str) -> Iterator[Listener]:
    """Hear of what others append to the step, or to cancel the run, for as long as the context lasts."""
    listener, key = Listener(run, step_id), (asyncio.get_running_loop(), id(run.store))
    looker = _lookers.get(key)
    if looker is None or looker.task.done():
        for closed in [each for each in [*_lookers] if each[0].is_closed()]:
            _lookers.pop(closed, None)
        looker = _lookers[key] = Looker(run.store)
    looker.listeners[listener] = None
    try:
        with news.heard(run.id, listener.hear):
            yield listener
    finally:
        del looker.listeners[listener]
        if not looker.listeners:
            with suppress(RuntimeError):  # its loop was closed
                looker.task.cancel()
            if _lookers.get(key) is looker:
                del _lookers[key]
