"""Polling for decisions: all waits of one store share one request in each round.

A round comes every few seconds, and at once when the store reports an act. Waits that the store notifies are polled every 30
seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import Context
from datetime import datetime
from functools import partial
from typing import Final

from durable_core._log.news import news_of
from durable_core._log.watches import WATCHED_SECONDS, Watch, watching
from durable_core._system.waits import cancellations
from durable_core.errors import CorruptLog, DurableError
from durable_core.record import StepRecord
from durable_core.store import Store, polling_of

from .run import Run, poll_seconds

_LONGEST: Final = 30.0  # seconds of a request
_logger: Final = logging.getLogger("durable_core")


Pair = tuple[str, str]
"""A run and one of its steps."""


class Listener:
    """A wait that is woken when there may be something new."""

    def __init__(self, run: Run, step_id: str, pairs: Sequence[Pair], tell: Callable[[Listener], None]) -> None:
        self.run: Final = run
        self.step_id: Final = step_id
        self.pairs: Final = pairs
        """The steps for which it waits: its own, or those for which a child waits."""
        self.until: datetime | None = None
        """When it continues by itself."""
        self.heard: Final = asyncio.Event()
        """Set when somebody acted or the runner must stop."""
        self.must_look = False
        """True if the wait must read the store itself: somebody acted in this process, or a log is damaged."""
        self._others: Final[dict[Pair, StepRecord]] = {}
        """The newest entries of other runs."""
        self._tell: Final = tell
        """Called when the store may hold something new."""
        self._watches: Final[list[Watch]] = []
        self.until_the_end: Final = ExitStack()
        """The contexts that end with this wait."""

    @property
    def run_ids(self) -> Sequence[str]:
        """The runs in which acts concern this wait: its own, which may be cancelled, and those of its pairs."""
        return [*dict.fromkeys((self.run.id, *(run_id for run_id, _ in self.pairs)))]

    def watch(self) -> None:
        """Ask the store to report acts from now on, because the wait didn't end at once."""
        if not self._watches:
            tell = partial(self._tell, self)
            watches = (watching(self.run.store, run_id, tell) for run_id in self.run_ids)
            self._watches.extend(map(self.until_the_end.enter_context, watches))

    @property
    def is_watched(self) -> bool:
        """True if the store reports all acts that concern this wait."""
        return bool(self._watches) and all(watch.listens for watch in self._watches)

    def hear(self) -> None:
        """Wake the wait, which then reads the store."""
        self.must_look = True
        self.heard.set()

    def newest(self, pair: Pair) -> StepRecord | None:
        """Return the newest known entry of a pair."""
        run_id, step_id = pair
        return self.run.log.latest(step_id) if run_id == self.run.id else self._others.get(pair)

    def add(self, record: StepRecord) -> None:
        """Add an entry that the store holds."""
        if record.run_id == self.run.id:
            self.run.log.add(record)
        else:
            self._others[record.run_id, record.step_id] = record

    async def look(self) -> None:
        """Read from the store what this waits for, and the run's cancellation."""
        self.must_look = False
        await self.run.look_for_cancellation()
        for run_id, step_id in self.pairs:
            if (record := await self.run.log.look(step_id, run_id)) is not None:
                self.add(record)

    def known(self) -> list[tuple[str, str, int]]:
        """Return what this wait knows about what it waits for, and about the run's cancellation."""
        pairs = (*self.pairs, (self.run.id, self.run.cancelled_by))
        found = [(pair, self.newest(pair)) for pair in pairs]
        return [(*pair, -1 if record is None else record.revision) for pair, record in found]


class Looker:
    """Polls for the waits of one store on one event loop."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store
        self._seconds: Final = poll_seconds(store)
        self.listeners: Final[dict[Listener, None]] = {}
        self._due: dict[Listener, None] = {}
        """The waits to look for in the next round,"""
        self._told: Final = asyncio.Event()
        """which comes at once when this is set."""
        self._is_away = False
        # In a context of its own, because that of the first wait would keep its run alive while any other waits.
        self.task: Final = asyncio.create_task(self._rounds(), name="durable-looks", context=Context())

    def tell(self, listener: Listener) -> None:
        """Poll for a wait at once."""
        self._due[listener] = None
        self._told.set()

    async def _rounds(self) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        next_round, next_for_all = began + self._seconds, began + WATCHED_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._told.wait()
            self._told.clear()
            if is_round := now() >= next_round:
                if is_for_all := now() >= next_for_all:
                    next_for_all = now() + WATCHED_SECONDS
                self._due |= {each: None for each in self._checked() if is_for_all or not each.is_watched}
            due, self._due = [each for each in self._due if each in self.listeners], {}
            if due:
                await self._look(due)
            if is_round:
                next_round = now() + self._seconds

    def _checked(self) -> Sequence[Listener]:
        """Wake the waits whose runs were cancelled or lost their locks; return all."""
        for listener in (listeners := [*self.listeners]):
            try:
                listener.run.lock.check()
            except DurableError:  # its lock was lost, which the wait raises itself
                listener.heard.set()
            if listener.run.log.cancelled is not None:
                listener.heard.set()
        return listeners

    async def _look(self, due: Sequence[Listener]) -> None:
        """Read what these wait for in one request, and wake those for which something came."""
        before = cancellations()
        try:
            async with asyncio.timeout(_LONGEST):
                found = await self._newer([*{pair: None for listener in due for pair in listener.known()}])
        except CorruptLog:
            for listener in due:  # a wait in the damaged run raises that itself
                listener.hear()
            return
        except (Exception, asyncio.CancelledError) as error:
            if cancellations() > before:
                raise
            if not self._is_away:
                _logger.warning("could not look for what %d waits wait for, trying again: %r", len(due), error)
            self._is_away = True
            self._due |= dict.fromkeys(due)  # in the next round, though they may be told by the store
            return
        self._is_away = False
        newest = {(record.run_id, record.step_id): record for record in found}
        for listener in due if newest else ():
            for pair in listener.pairs:
                if record := newest.get(pair):
                    listener.add(record)
                    listener.heard.set()
            if (listener.run.id, listener.run.cancelled_by) in newest:  # the run was cancelled, or another drives it
                listener.hear()

    async def _newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        polling = polling_of(self._store)
        if polling is not None:
            return await polling.newer(known)
        latest = await asyncio.gather(*(self._store.get(run_id, step_id) for run_id, step_id, _ in known))
        return [record for record, (_, _, revision) in zip(latest, known, strict=True) if record and record.revision > revision]


_lookers: Final[dict[tuple[asyncio.AbstractEventLoop, int], Looker]] = {}


@contextmanager
def listening(run: Run, step_id: str, pairs: Sequence[Pair] | None = None) -> Iterator[Listener]:
    """Wake when others append to a step of the run or to one of `pairs`, or cancel the run."""
    pairs = [(run.id, step_id)] if pairs is None else pairs
    key = asyncio.get_running_loop(), id(run.store)
    looker = _lookers.get(key)
    if looker is None or looker.task.done():
        for closed in [each for each in [*_lookers] if each[0].is_closed()]:
            _lookers.pop(closed, None)
        looker = _lookers[key] = Looker(run.store)
    listener = Listener(run, step_id, pairs, looker.tell)
    looker.listeners[listener] = None
    try:
        with listener.until_the_end as stack:
            for run_id in listener.run_ids:
                stack.enter_context(news_of(run_id).calling(listener.hear))
            yield listener
    finally:
        del looker.listeners[listener]
        if not looker.listeners:
            with suppress(RuntimeError):  # its loop was closed
                looker.task.cancel()
            if _lookers.get(key) is looker:
                del _lookers[key]
