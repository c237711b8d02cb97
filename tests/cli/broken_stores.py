"""Stores that break one promise each, on a database of SQLite that is right: what `durable doctor` has to find."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from types import TracebackType
from typing import Any, Self

import msgspec

from durable_core import Lease, RunBusy, StepRecord, StoreError
from durable_core.store import Holder, WakeUp
from durable_sqlite import SqliteStore


class Broken(SqliteStore):
    """A store whose scheme is the name of its fault."""

    @classmethod
    def from_url(cls, url: str) -> Self:
        return super().from_url(f"sqlite:{url.partition(':')[2]}")


class WritesLate(Broken):
    """Confirms before it writes: what is under way when its process dies is lost."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: list[StepRecord] = []

    async def append(self, record: StepRecord) -> StepRecord:
        for held in await self.list(record.run_id):
            if (held.step_id, held.revision) == (record.step_id, record.revision):
                return held
        self._late.append(record)
        return record

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return [*await super().list(run_id), *(record for record in self._late if record.run_id == run_id)]

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        entries = [record for record in await self.list(run_id) if record.step_id == step_id]
        return max(entries, key=lambda record: record.revision, default=None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for record in self._late:
            await super().append(record)
        await super().__aexit__(kind, error, trace)


class ForgetsAtClosing(Broken):
    """Drops the last write of each run when it is closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._written: set[str] = set()

    async def append(self, record: StepRecord) -> StepRecord:
        self._written.add(record.run_id)
        return await super().append(record)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for run_id in self._written:
            entries = await super().list(run_id)
            await super().clear(run_id)
            for record in entries[:-1]:
                await super().append(record)
        await super().__aexit__(kind, error, trace)


class ChangesWrites(Broken):
    """Cuts what it stores."""

    async def append(self, record: StepRecord) -> StepRecord:
        await super().append(msgspec.structs.replace(record, note=None))
        return record


class TwoWinners(Broken):
    """Looks whether a slot is free, and then writes: all who looked in time win."""

    async def append(self, record: StepRecord) -> StepRecord:
        for held in await self.list(record.run_id):
            if (held.step_id, held.revision) == (record.step_id, record.revision):
                return held
        await super().append(record)
        return record


class LastWins(Broken):
    """Gives a slot to whoever writes last."""

    async def append(self, record: StepRecord) -> StepRecord:
        await super().append(record)
        return record


class StaleReads(Broken):
    """Reads of a log show it as it was a moment ago, but for one's own writes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._read: dict[str, tuple[float, Sequence[StepRecord]]] = {}

    async def append(self, record: StepRecord) -> StepRecord:
        self._read.pop(record.run_id, None)
        return await super().append(record)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        at, entries = self._read.get(run_id, (0.0, ()))
        if monotonic() - at > 0.1:
            entries = await super().list(run_id)
            self._read[run_id] = monotonic(), entries
        return entries


class StaleSteps(StaleReads):
    """Reads of one step do so."""

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await Broken.list(self, run_id)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        entries = [record for record in await StaleReads.list(self, run_id) if record.step_id == step_id]
        return max(entries, key=lambda record: record.revision, default=None)


class ClearsNothing(Broken):
    """Keeps what is cleared."""

    async def clear(self, run_id: str) -> None:
        return None


class ClearsTooMuch(Broken):
    """Takes the id of a run for the beginning of ids."""

    async def clear(self, run_id: str) -> None:
        for each in [each async for each in self.runs(run_id)]:
            await super().clear(each)


class OverlooksARun(Broken):
    """Lists all runs but one."""

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        async for run_id in super().runs(prefix):
            if not run_id.endswith("3"):
                yield run_id


class WrongStates(Broken):
    """Has an index in which runs that wait are missing."""

    async def flows(self, *args: Any, **options: Any) -> Sequence[StepRecord]:
        return [record for record in await super().flows(*args, **options) if record.status != "waiting"]


class OldStates(Broken):
    """Has an index that doesn't know the newest entries."""

    async def flows(self, *args: Any, **options: Any) -> Sequence[StepRecord]:
        return [(await self.list(record.run_id))[0] for record in await super().flows(*args, **options)]


class SamePage(Broken):
    """Has an index whose second page is the first one."""

    async def flows(self, *args: Any, **options: Any) -> Sequence[StepRecord]:
        return await super().flows(*args, **{**options, "before": None})


class _Given(Lease):
    def check(self) -> None:
        """It is never lost."""


class LockOfAProcess(Broken):
    """Knows only the locks of its own process."""

    _mine: set[str] = set()  # noqa: RUF012  # of all stores of the process

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        if run_id in self._mine:
            raise RunBusy(run_id, holder="this process", since=None)
        self._mine.add(run_id)
        try:
            yield _Given()
        finally:
            self._mine.discard(run_id)

    async def holder(self, run_id: str) -> Holder | None:
        return Holder("this process", None) if run_id in self._mine else None


class LockInTwoSteps(Broken):
    """Looks whether a lock is free, and then takes it; that of a process which died stays taken."""

    def _file(self, run_id: str) -> Any:
        return self._path.with_name(f"{run_id}.lock")

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        if self._file(run_id).exists():
            raise RunBusy(run_id, holder="somebody", since=None)
        await asyncio.sleep(0.001)
        self._file(run_id).touch()
        try:
            yield _Given()
        finally:
            self._file(run_id).unlink(missing_ok=True)

    async def holder(self, run_id: str) -> Holder | None:
        return Holder("somebody", None) if self._file(run_id).exists() else None


class TellsNoHolder(Broken):
    """Says that nobody holds a run, whoever does."""

    async def holder(self, run_id: str) -> Holder | None:
        return None


class LosesWakeups(Broken):
    """Takes wake-ups that nobody gets."""

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        return (await super().take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout))[:4]


class DoublesWakeups(Broken):
    """Hides nothing that was taken."""

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        return await super().take_wakeups(flows, limit=limit, visibility_timeout=timedelta(0))


class TakesWakeupsForGood(Broken):
    """Forgets a wake-up when it is taken: who dies with it takes it along."""

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        taken = await super().take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout)
        await super().clear_wakeups(taken)
        return taken


class ClearsNoWakeups(Broken):
    """Shows wake-ups again that were cleared."""

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        return None


class EarlyWakeups(Broken):
    """Shows wake-ups at once, whenever they are due."""

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        return msgspec.structs.replace(await super().set_wakeup(run_id, flow, datetime.now(UTC)), at=at)


class AnotherTime(Broken):
    """Has a clock that is two hours ahead."""

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        wakeup = await super().set_wakeup(run_id, flow, at)
        return msgspec.structs.replace(wakeup, now=wakeup.now + timedelta(hours=2))


class Warns(Broken):
    """Says that it would lose runs."""

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        warnings.warn("this store keeps nothing", UserWarning, stacklevel=1)
        return await super().get(run_id, step_id)


class Logs(Broken):
    """Says in its log that something is strange."""

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        logging.getLogger("durable_sqlite").warning("the file is %s", "strange")
        return await super().get(run_id, step_id)


class Hangs(Broken):
    """Never answers."""

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        with suppress(StoreError):
            await asyncio.Event().wait()
        return None


class Raises(Broken):
    """Answers with an error that would move a terminal."""

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        raise StoreError("gone \x1b[31mred\u202e " + "x" * 5_000)


class Worst(ClearsTooMuch, WrongStates, LockOfAProcess, LosesWakeups, AnotherTime, Warns):
    """Breaks many promises at once."""
