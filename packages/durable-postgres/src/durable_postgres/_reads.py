"""Reads many steps or short runs in one statement, and a long run page by page."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from datetime import datetime
from typing import Any, Final

from asyncpg import Connection

from durable_core import Batcher, StepRecord
from durable_core.stores.flows import FLOW_STATES, FlowState

from ._connections import Connections
from ._errors import retry
from ._rows import Statements
from .errors import RowRefused

_SHORT: Final = 200
_PAGE: Final = 1_000
_BELOW_ALL: Final = -(2**63)
_log: Final = logging.getLogger("durable_postgres")

Query = tuple[str, str | None]
"""A run and one of its steps, or None for all of them."""


class Reads:
    """Reads newest entries and whole runs. Concurrent reads share statements."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections: Final = connections
        self._statements: Final = statements
        self._limits: Final = connections.limits
        self._own: Final = connections.own()
        # At most 500 steps or 100 runs a statement: a step is one row, and a short run up to 200.
        self._read: Final = Batcher(
            self._flush, size=lambda asked: 1 if asked[1] else 5, max_items=500, max_bytes=500, refused=RowRefused
        ).submit

    async def step(self, run_id: str, step_id: str) -> StepRecord | None:
        """Read the newest entry of a step."""
        found = await self._read((run_id, step_id))
        return found[0] if found else None

    async def run(self, run_id: str) -> Sequence[StepRecord]:
        """Read all entries of a run in order."""
        records = await self._read((run_id, None))
        return await retry(lambda: self._long(run_id)) if len(records) > _SHORT else records

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        """Read the newest entry of each step that has a higher revision than the known one.

        Passes over a row that can't be read, and raises its `RowRefused` only if there is nothing else to return.
        """
        if not known:
            return []
        found: list[StepRecord] = []
        refusals: list[RowRefused] = []
        columns = map(list, zip(*known, strict=True))
        for row in await self._connections.fetch(self._statements.newer, *columns, within=self._limits.statement):
            try:
                found.append(self._statements.record(row))
            except RowRefused as refusal:
                refusals.append(refusal)
        if refusals and not found:
            raise refusals[0]
        return found

    async def flows(
        self,
        prefix: str,
        names: Collection[str] | None,
        states: Collection[FlowState] | None,
        since: datetime | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[StepRecord]:
        """Read the newest entries of flows, the latest start first.

        Passes over a row that can't be read, and raises its `RowRefused` only if there is nothing else to return.
        """
        query, own = (self._statements.flows, ()) if names is None else (self._statements.flows_named, ([*frozenset(names)],))
        stands = [*(FLOW_STATES if states is None else frozenset(states))]
        found: list[StepRecord] = []
        refusal: RowRefused | None = None
        while (left := limit - len(found)) > 0:
            asked = (prefix, stands, since, *(before or (None, None)), left, *own)
            rows = await self._connections.fetch(query, *asked, within=self._limits.read)
            for began, run_id, *entry in rows:
                before = began, run_id
                if entry[0] is None:  # only the index has it: somebody deleted the row by hand
                    continue
                try:
                    found.append(self._statements.record(entry))
                except RowRefused as error:
                    _log.warning("a run is passed over: %s", error)
                    refusal = error
            if len(rows) < left:
                break
        if refusal is not None and not found:
            raise refusal
        return found

    async def _flush(self, asked: Sequence[Query]) -> Sequence[Sequence[StepRecord]]:
        found: dict[Query, list[StepRecord]] = {each: [] for each in asked}
        steps = [(run_id, step_id, _BELOW_ALL) for run_id, step_id in found if step_id is not None]
        runs = [run_id for run_id, step_id in found if step_id is None]

        async def read() -> tuple[Sequence[Any], Sequence[Any]]:
            columns = map(list, zip(*steps, strict=True))
            newest, entries = self._statements.newer, self._statements.read_short
            async with self._own.use() as connection:
                return (
                    await connection.fetch(newest, *columns, timeout=self._limits.statement) if steps else (),
                    await connection.fetch(entries, runs, _SHORT + 1, timeout=self._limits.read) if runs else (),
                )

        of_steps, of_runs = await retry(read)
        for record in map(self._statements.record, of_steps):
            found[record.run_id, record.step_id].append(record)
        for record in map(self._statements.record, of_runs):
            found[record.run_id, None].append(record)
        return [found[each] for each in asked]

    async def _long(self, run_id: str) -> Sequence[StepRecord]:
        async with self._connections.borrow() as connection:
            return [record async for page in self.pages(connection, run_id) for record in page]

    async def pages(self, connection: Connection, run_id: str) -> AsyncGenerator[Sequence[StepRecord]]:
        """Read a run of any length, with one page in memory at a time. If the caller stops early, the connection is dropped."""
        # One statement has one snapshot. Separate reads could show a later entry without an earlier one.
        sql = connection.transaction(readonly=True)
        await self._connections.timed(connection, sql.start(), within=self._limits.read)
        cursor = await connection.cursor(self._statements.read, run_id, timeout=self._limits.read)
        while rows := await cursor.fetch(_PAGE, timeout=self._limits.read):
            yield [*map(self._statements.record, rows)]
        await self._connections.timed(connection, sql.rollback(), within=self._limits.read)
