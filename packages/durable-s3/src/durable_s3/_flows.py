"""The index of the runs that have not ended: empty objects, written before the log, removed after the end, and checked when read.

    open/<run>/<revision>.<began>.<token>

Each entry of a flow that doesn't end it has its own mark, so that ending a run can't remove the mark of a later entry. A process
that dies in between leaves a mark too many. Readers remove it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final, NamedTuple

from durable_core.errors import StoreError
from durable_core.record import StepRecord
from durable_core.stores.flows import FLOW, FLOW_STATES, FlowState, has_ended, is_among, sortable

from ._bucket import Bucket
from ._faults import away
from ._keys import Keys
from ._reader import Reader, together

OPEN: Final[frozenset[FlowState]] = frozenset(FLOW_STATES - {"succeeded", "failed", "cancelled"})
_IN_FLIGHT: Final = 3600
"""For so many seconds, a mark without an entry may belong to an append that is under way."""
_AT_ONCE: Final = 32
_log: Final = logging.getLogger("durable_s3")


class _Mark(NamedTuple):
    began: str
    folder: str
    revision: int
    key: str
    age: float


class OpenRuns:
    """The marks of a store's runs. `newest` is the store's `get`."""

    def __init__(
        self, bucket: Bucket, keys: Keys, reader: Reader, newest: Callable[[str, str], Awaitable[StepRecord | None]]
    ) -> None:
        self._bucket: Final = bucket
        self._keys: Final = keys
        self._reader: Final = reader
        self._newest: Final = newest

    async def add(self, flow: StepRecord) -> None:
        """Mark a run before its entry is appended."""
        await self._bucket.put(self._keys.mark(flow.run_id, flow.revision, sortable(flow.started_at), os.urandom(4).hex()), b"")

    async def end(self, run_id: str, revision: int) -> None:
        """Remove the marks up to `revision` of a run that has ended. Marks that can't be removed do no harm."""
        with _harmless(run_id):
            marks = await self._marks(self._keys.marks(run_id))
            await self._bucket.delete([mark.key for mark in marks if mark.revision <= revision])

    async def of_run(self, run_id: str) -> Sequence[str]:
        """Return the keys of a run's marks."""
        return [mark.key for mark in await self._marks(self._keys.marks(run_id))]

    async def remove(self, run_id: str, marks: Sequence[str]) -> None:
        """Remove the marks of a cleared run. If the run has begun again meanwhile, give it a new mark."""
        if marks:
            await self._bucket.delete(marks)
            flow = await self._newest(run_id, FLOW)
            if flow is not None and not has_ended(flow):
                await self.add(flow)

    async def find(
        self,
        prefix: str,
        names: Collection[str] | None,
        states: Collection[FlowState] | None,
        since: datetime | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[StepRecord]:
        """Return the newest entries of flows that have not ended, the latest start first."""
        if OPEN.isdisjoint(OPEN if states is None else states):
            return []
        first, last = "" if since is None else sortable(since), "9" if before is None else sortable(before[0])
        places: dict[tuple[str, str], list[_Mark]] = {}
        for mark in await self._marks(self._keys.marked(prefix)):
            if first <= mark.began <= last:
                places.setdefault((mark.began, mark.folder), []).append(mark)
        ordered = sorted(places, reverse=True)
        found: list[StepRecord] = []
        refusal: StoreError | None = None
        for start in range(0, len(ordered), _AT_ONCE):
            some = ordered[start : start + _AT_ONCE]
            if len(found) >= limit and some[0][0] < sortable(found[limit - 1].started_at):
                break
            flows = await together(self._flow(folder, places[began, folder]) for began, folder in some)
            for (began, _), flow in zip(some, flows, strict=True):
                if isinstance(flow, StoreError):
                    _log.warning("a run is passed over: %s", flow)
                    refusal = flow
                elif (
                    flow is not None
                    and not has_ended(flow)
                    and sortable(flow.started_at) == began
                    and is_among(flow, prefix, names=names, states=states, since=since, before=before)
                ):
                    found.append(flow)
            found.sort(key=lambda flow: (flow.started_at, flow.run_id), reverse=True)
        if refusal is not None and not found:
            raise refusal
        return found[:limit]

    async def _flow(self, folder: str, marks: Sequence[_Mark]) -> StepRecord | StoreError | None:
        """Return the newest entry of the flow in `folder`, and remove marks without a run in progress."""
        try:
            run_id = self._keys.run_id(folder) or await self._reader.run_id(folder)
            flow = None if run_id is None else await self._newest(run_id, FLOW)
        except StoreError as error:
            if away(error):
                raise  # the other runs can't be read now, either
            return error
        except ValueError:
            return None
        if flow is not None and has_ended(flow):
            await self.end(flow.run_id, flow.revision)
        elif flow is None and (old := [mark.key for mark in marks if mark.age > _IN_FLIGHT]):
            with _harmless(folder):
                await self._bucket.delete(old)
        return flow

    async def _marks(self, start: str) -> Sequence[_Mark]:
        found: list[_Mark] = []
        async for page in self._bucket.pages(start):
            for at in page.objects:
                *_, name, last = at.key.split("/")
                revision, _, rest = last.partition(".")
                if revision.isdecimal():
                    age = 0.0 if page.date is None else (page.date - at.modified).total_seconds()
                    found.append(_Mark(rest.partition(".")[0], self._keys.folder(name), int(revision), at.key, age))
        return found


@contextmanager
def _harmless(run: str) -> Iterator[None]:
    """Ignore errors when removing marks: the next reader tries again."""
    try:
        yield
    except StoreError as error:
        _log.info("marks of run %r were left: %s", run, error)
