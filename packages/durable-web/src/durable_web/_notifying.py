"""Notifications of new approvals: a hook is called at least once for each, by the process that sees it first."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from durable_core import control
from durable_core.clock import Clock, SystemClock
from durable_core.engine import newest
from durable_core.errors import CorruptLog
from durable_core.record import StepRecord
from durable_core.store import Store

from ._asked import Asked, asked_by

Notify = Callable[[StepRecord], object] | Callable[[StepRecord], Awaitable[object]]
"""Called with the newest entry of a pending approval. A plain function is called in a thread."""

SECONDS: Final = 5.0
"""Seconds between two looks. On a slow store there are more, because looking takes at most a tenth of the time."""
AGAIN: Final = timedelta(seconds=60)
"""Seconds that a call may take. A call that takes longer or raises is repeated."""
_AT_ONCE: Final = 10
_logger: Final = logging.getLogger("durable_web")


class Notifier:
    """Calls the hook for each new approval of a store."""

    def __init__(self, store: Store, notify: Notify | None, clock: Clock | None = None) -> None:
        self._store: Final = store
        self._notify: Final = notify
        self._clock: Final = clock or SystemClock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look for new approvals until the context ends."""
        if self._notify is None:
            yield
            return
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            began = self._clock.monotonic()
            try:
                await self.round()
            except Exception as error:  # such as an unreachable store
                _logger.warning("can't look for new approvals, trying again: %s", error)
            await self._clock.sleep(max(SECONDS, 9 * (self._clock.monotonic() - began)))

    async def round(self) -> int:
        """Call the hook for each pending approval that was not yet reported; return how many calls succeeded."""
        asked = await self._asked()
        told = await newest(self._store, [(each.run_id, mark_id(each.step_id)) for each in asked])
        new = [(each, told.get((each.run_id, mark_id(each.step_id)))) for each in asked]
        new = [(each, latest) for each, latest in new if self._is_due(each, latest)]
        count = 0
        for some in [new[start : start + _AT_ONCE] for start in range(0, len(new), _AT_ONCE)]:
            count += sum(await asyncio.gather(*(self._tell(each, latest) for each, latest in some)))
        return count

    async def _asked(self) -> list[Asked]:
        found: list[Asked] = []
        try:
            async for record in control.pending(self._store, clock=self._clock):
                found.append(asked_by(record))  # noqa: PERF401  # a comprehension would lose all to an error at the end
        except CorruptLog as error:  # told after the others
            _logger.warning("the approvals of a damaged run are told to nobody: %s", error)
        return found

    def _is_due(self, asked: Asked, latest: StepRecord | None) -> bool:
        if latest is None or latest.notes.get("asked") != asked.since.isoformat():  # asked again after a retry
            return True
        return latest.status == "started" and latest.ended_at + AGAIN <= self._clock.now()

    async def _tell(self, asked: Asked, latest: StepRecord | None) -> bool:
        """Claim the call, make it, and mark it as made; return True if that succeeded."""
        claim = self._entry(asked, latest, "started")
        if (await self._store.append(claim)).id != claim.id:
            return False  # another process makes it
        try:
            async with asyncio.timeout(AGAIN.total_seconds()):
                await _call(self._notify, asked.record)
        except Exception:
            _logger.exception("notify= raised for %r of run %r; it is called again", asked.step_id, asked.run_id)
            return False
        await self._store.append(self._entry(asked, claim, "success"))
        return True

    def _entry(self, asked: Asked, latest: StepRecord | None, status: Any) -> StepRecord:
        now = self._clock.now()
        return StepRecord(
            run_id=asked.run_id,
            step_id=mark_id(asked.step_id),
            revision=0 if latest is None else latest.revision + 1,
            status=status,
            note={"asked": asked.since.isoformat()},
            started_at=now,
            ended_at=now,
        )


def mark_id(step_id: str) -> str:
    """Return the id of the step that records whether an approval was reported. A long id is hashed."""
    marked = f"$notified/{step_id}"
    return marked if len(marked.encode()) <= 512 else f"$notified/{hashlib.sha256(step_id.encode()).hexdigest()}"


async def _call(notify: Any, record: StepRecord) -> None:
    if inspect.iscoroutinefunction(notify):
        await notify(record)
    elif inspect.isawaitable(answer := await run_in_threadpool(notify, record)):
        await answer
