"""Claiming slots, many in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asyncpg import Connection

from durable_core import Batcher, StepRecord
from durable_core.stores.flows import FLOW, state_of

from ._connections import Connections
from ._errors import retry
from ._rows import Statements, as_json, size_of, slot_of
from .errors import RowRefused


class Writer:
    """Combines concurrent appends into few inserts, one batch at a time on a connection of its own."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._own: Final = connections.own()
        self._statements: Final = statements
        self._seconds: Final = connections.limits.statement
        self.submit: Final = Batcher(self._flush, size=size_of, refused=RowRefused).submit

    async def _flush(self, records: Sequence[StepRecord]) -> Sequence[StepRecord]:
        async def write() -> Sequence[StepRecord]:
            async with self._own.use() as connection:
                return await claim(connection, self._statements, records, self._seconds)

        # A row that was written before the connection broke holds its slot, and is found there.
        return await retry(write)


async def claim(
    connection: Connection, statements: Statements, records: Sequence[StepRecord], seconds: float
) -> Sequence[StepRecord]:
    """Claim the slot of each record; return for each the one that holds its slot, which is itself if it won."""
    holders: dict[tuple[str, str, int], StepRecord] = {}
    missing = records
    while missing:
        if await _insert(connection, statements, missing, seconds) == len(missing):
            break
        slots = map(list, zip(*map(slot_of, missing), strict=True))
        for holder in map(statements.record, await connection.fetch(statements.holders, *slots, timeout=seconds)):
            holders[slot_of(holder)] = holder
        # A slot that was taken and is empty now has been cleared in between: claim it again.
        missing = [record for record in missing if slot_of(record) not in holders]
    if not holders:
        return records
    pairs = [(record, holders.get(slot_of(record), record)) for record in records]
    return [record if holder.id == record.id else holder for record, holder in pairs]


async def _insert(connection: Connection, statements: Statements, records: Sequence[StepRecord], seconds: float) -> int:
    """Insert the records whose slots are empty, and return how many; flows also into the index."""
    # In the order of the key, as every other batch, so that no two of them wait for each other.
    rows = as_json(sorted(records, key=slot_of))
    flows = [record for record in records if record.step_id == FLOW]
    if not flows:
        done = await connection.execute(statements.insert, rows, timeout=seconds)
        return int(done.rpartition(" ")[2])
    states = [flow.id for flow in flows], [state_of(flow) for flow in flows]
    inserted: int = await connection.fetchval(statements.insert_flows, rows, *states, timeout=seconds)
    return inserted
