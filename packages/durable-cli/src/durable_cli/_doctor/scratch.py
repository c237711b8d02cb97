"""The checks' means: two connections to the store, other processes, and runs of the doctor's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from secrets import token_hex
from types import TracebackType
from typing import Any, Final, Self

from durable_core import StepRecord, open_store
from durable_core.store import WakeUp, wakeups_of

from .hearing import Heard
from .processes import OtherProcess

_TO_REMOVE: Final = 30.0  # seconds
_TO_REMOVE_AT_ONCE: Final = 3.0
_A_MOMENT: Final = 0.02  # seconds until all processes have got the command


class Scratch:
    """Runs and wake-ups with unique ids. Leaving the context always removes them."""

    def __init__(self, url: str, heard: Heard, *, rivals: int) -> None:
        self.url: Final = url
        self.heard: Final = heard
        self.rivals: Final = rivals
        """How many other processes do the same thing at the same time."""
        self.store: Final = open_store(url)
        self.another: Final = open_store(url)
        """A second connection to the same store."""
        self.flow: Final = f"doctor-{token_hex(6)}"
        """The name of a flow that no worker has. The ids of all runs begin with it, too."""
        self.left: Final[list[str]] = []
        """The runs that could not be removed."""
        self._runs: Final[dict[str, None]] = {}
        self._wakeups: Final[list[WakeUp]] = []
        self._processes: Final[list[OtherProcess]] = []
        self._stack: Final = AsyncExitStack()

    def run_id(self, about: str) -> str:
        """Return the id of a run that is removed at the end."""
        run_id = f"{self.flow}-{about}"
        self._runs[run_id] = None
        return run_id

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        """Set a wake-up that is cleared at the end."""
        wakeups = wakeups_of(self.store)
        assert wakeups is not None
        wakeup = await wakeups.set_wakeup(run_id, flow, at)
        self._wakeups.append(wakeup)
        return wakeup

    async def processes(self, count: int) -> Sequence[OtherProcess]:
        """Return `count` other processes that have opened the store. Starts those that are missing."""
        self._processes[:] = [process for process in self._processes if process.is_alive]
        missing = [self._start() for _ in range(count - len(self._processes))]
        for failure in await asyncio.gather(*missing, return_exceptions=True):
            if failure is not None:
                raise failure
        return self._processes[:count]

    async def all_ask(self, do: str, **given: Any) -> Sequence[Any]:
        """Have all rivals do the same thing at the same time."""
        processes = await self.processes(self.rivals)
        at = time.time() + _A_MOMENT
        return await asyncio.gather(*(process.ask(do, at=at, **given) for process in processes))

    async def _start(self) -> None:
        self._processes.append(await OtherProcess.start(self.url))

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.store)
        await self._stack.enter_async_context(self.another)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        try:
            # After Ctrl-C, don't wait: a killed process only held the doctor's own runs.
            ends = [process.end() if kind is None else process.kill() for process in self._processes]
            await asyncio.gather(*ends, return_exceptions=True)
            await self._remove(_TO_REMOVE if kind is None else _TO_REMOVE_AT_ONCE)
        finally:
            await self._stack.aclose()

    async def _remove(self, seconds: float) -> None:
        """Remove the runs and wake-ups."""
        self.left.extend(self._runs)
        with suppress(Exception):  # `left` has the runs that remain
            async with asyncio.timeout(seconds):
                if (wakeups := wakeups_of(self.store)) and self._wakeups:
                    await wakeups.clear_wakeups(self._wakeups)
                await asyncio.gather(*map(self._clear, self._runs))

    async def _clear(self, run_id: str) -> None:
        await self.store.clear(run_id)
        self.left.remove(run_id)


def ids(records: Iterable[StepRecord | None]) -> list[str | None]:
    """Return the ids of records."""
    return [record.id if record else None for record in records]
