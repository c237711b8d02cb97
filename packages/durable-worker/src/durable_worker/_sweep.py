"""The sweep, which finds runs that could continue without a wake-up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from datetime import datetime
from typing import Final

from durable_core.clock import Clock
from durable_core.engine import FLOW, could_go_on, decided, newest, root_of
from durable_core.errors import CorruptLog
from durable_core.record import StepRecord
from durable_core.store import Store, SupportsFlows, flows_of, holder_of, marks_of, runs_of
from durable_core.stores.flows import FlowState

_PAGE: Final = 500
_OPEN: Final[Collection[FlowState]] = ("waiting", "started", "crashed", "parked", "cancelling")


class Sweep:
    """Looks at all runs of the given flows that have not ended."""

    def __init__(
        self,
        store: Store,
        names: Collection[str],
        clock: Clock,
        adopt: float,
        tries_once_more: Callable[[StepRecord], bool],
        tell_damage: Callable[[str, str, Exception], Awaitable[None]],
    ) -> None:
        self._store: Final = store
        self._names: Final = names
        self._clock: Final = clock
        self._adopt: Final = adopt
        self._tries_once_more: Final = tries_once_more
        self._tell_damage: Final = tell_damage
        self._marks: Mapping[str, Hashable] = {}
        self._open: Final[dict[str, StepRecord]] = {}
        """For a store without an index: the newest entries of flows that have not ended, as last read."""

    async def due(self) -> AsyncIterator[StepRecord]:
        """Yield the flows of runs that could continue now, except those that another run drives or a process holds."""
        async for page in self._pages():
            flows = await self._independent(page)
            able = await self._able(flows)
            holders = await self._holders([flow.run_id for flow in flows if flow.status == "started"])
            for flow in flows:
                if flow.status == "started":
                    age = (self._clock.now() - flow.ended_at).total_seconds()
                    if flow.run_id not in holders and age <= self._adopt:
                        yield flow
                elif able[flow.run_id] or self._tries_once_more(flow):
                    yield flow

    async def _able(self, flows: Sequence[StepRecord]) -> Mapping[str, bool]:
        """Return which runs could continue now. A damaged log doesn't hide others."""
        try:
            return await could_go_on(self._store, flows, self._clock.now())
        except CorruptLog as error:
            if len(flows) == 1:
                await self._tell_damage(flows[0].run_id, flows[0].name, error)
                return {flows[0].run_id: False}
            return {run_id: able for flow in flows for run_id, able in (await self._able([flow])).items()}

    async def _independent(self, page: Sequence[StepRecord]) -> Sequence[StepRecord]:
        """Leave out runs that another run drives, unless that run has ended without them."""
        roots = {flow.run_id: root[0] for flow in page if (root := root_of(flow)) is not None}
        tops = await self._newest({(run_id, FLOW) for run_id in roots.values()})
        return [
            flow
            for flow in page
            if flow.run_id not in roots or (top := tops.get((roots[flow.run_id], FLOW))) is None or decided(top)
        ]

    async def _newest(self, pairs: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], StepRecord]:
        """Return the newest entry of each run that can be read."""
        try:
            return await newest(self._store, pairs)
        except CorruptLog:
            if len(pairs) == 1:
                return {}
            return {found: record for pair in pairs for found, record in (await self._newest([pair])).items()}

    async def _holders(self, run_ids: Collection[str]) -> Collection[str]:
        holders = holder_of(self._store)
        return await holders.holders(run_ids) if holders is not None and run_ids else ()

    async def _pages(self) -> AsyncIterator[Sequence[StepRecord]]:
        """Yield the newest entries of flows that have not ended, some at a time."""
        index = flows_of(self._store)
        if index is None:
            flows = await self._read()
            for start in range(0, len(flows), _PAGE):
                yield flows[start : start + _PAGE]
            return
        before = None
        while page := await self._page(index, before):
            yield page
            before = page[-1].started_at, page[-1].run_id

    async def _page(self, index: SupportsFlows, before: tuple[datetime, str] | None) -> Sequence[StepRecord]:
        try:
            return await index.flows(names=self._names, states=_OPEN, before=before, limit=_PAGE)
        except CorruptLog:  # nothing else can be read, and the store has logged why
            return []

    async def _read(self) -> Sequence[StepRecord]:
        """Read the flows of a store without an index. If the store marks changed logs, read only those."""
        if (marked := marks_of(self._store)) is not None:
            marks = await marked.marks()
            changed = [run_id for run_id, mark in marks.items() if self._marks.get(run_id) != mark]
            gone = [run_id for run_id in self._open if run_id not in marks]
        else:
            listing = runs_of(self._store)
            assert listing is not None, "a worker needs a store with wake-ups, or one that lists its runs"
            changed = [run_id async for run_id in listing.runs()]
            marks, gone = {}, [*self._open]
        for run_id in gone:
            del self._open[run_id]
        for run_id in changed:
            try:
                flow = await self._store.get(run_id, FLOW)
            except CorruptLog as error:
                await self._tell_damage(run_id, "", error)
                continue
            if flow is None or decided(flow) or flow.name not in self._names:
                self._open.pop(run_id, None)
            else:
                self._open[run_id] = flow
        self._marks = marks
        return [*self._open.values()]
