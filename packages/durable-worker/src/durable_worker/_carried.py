"""A store that sends its wake-ups as Celery tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Self

import msgspec
from kombu.exceptions import KombuError

from durable_core.store import OpenableStore, SupportsWakeups, WakeUp, wakeups_of
from durable_core.stores.passing import PassingStore

from ._on_demand import carried, is_carried

SOON: Final = 0.9
"""How far ahead a task may be sent, as a part of the time between two sweeps. Later wake-ups wait in the store."""
Send = Callable[[str, str, datetime], None]
"""Sends a task for a flow's run, to be done no earlier than a given time."""
_logger: Final = logging.getLogger("durable_worker")


class CarriedStore(PassingStore, OpenableStore, SupportsWakeups):
    """Sends wake-ups as tasks if they are due soon. Passes everything else on to `store`."""

    def __init__(self, store: OpenableStore, send: Send, sweep_every: float) -> None:
        super().__init__(store)
        self._wakeups: Final = wakeups_of(store)
        self._send: Final = send
        self._soon: Final = timedelta(seconds=SOON * sweep_every)
        self._ahead: Final = timedelta(seconds=sweep_every)

    @classmethod
    def from_url(cls, url: str) -> Self:
        raise NotImplementedError("durable_worker.celery.attach(…).open_store() makes it")

    def __repr__(self) -> str:
        return f"{self._store!r}, with Celery"

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        now = datetime.now(UTC)
        wakeup = carried(run_id, flow, at, now)
        if at - now <= self._soon:
            try:
                await asyncio.to_thread(self._send, flow, run_id, at)
                return wakeup
            except (KombuError, OSError) as error:
                _logger.warning(
                    "no task was sent for run %r, which the sweep will find: %r", run_id, error, extra={"run_id": run_id}
                )
        if self._wakeups is None:
            return wakeup
        # A sweep takes it before its time, so that the resulting look can send a task for the exact time.
        kept = await self._wakeups.set_wakeup(run_id, flow, at - self._ahead)
        return msgspec.structs.replace(kept, now=now)

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        if self._wakeups is None:
            return ()
        return await self._wakeups.take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        kept = [each for each in wakeups if not is_carried(each)]
        if kept and self._wakeups is not None:
            await self._wakeups.clear_wakeups(kept)
