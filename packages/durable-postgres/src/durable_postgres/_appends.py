"""Claims slots, many in one statement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from asyncpg import Connection

from durable_core import Batcher, StepRecord
from durable_core.stores.flows import FLOW, has_ended, state_of

from ._connections import Connections
from ._errors import retry
from ._rows import Statements, as_json, size_of, slot_of
from .errors import RowRefused


class Writer:
    """Combines concurrent appends into few inserts. Sends one batch at a time, on a connection of its own."""

    def __init__(self, connections: Connections, statements: Statements, holds: Callable[[str], bool]) -> None:
        self._own: Final = connections.own()
        self._statements: Final = statements
        self._holds: Final = holds
        self._seconds: Final = connections.limits.statement
        self.submit: Final = Batcher(self._flush, size=size_of, refused=RowRefused).submit

    async def _flush(self, records: Sequence[StepRecord]) -> Sequence[StepRecord]:
        async def write() -> Sequence[StepRecord]:
            async with self._own.use() as connection:
                return await claim(connection, self._statements, records, self._seconds, self._holds)

        # Safe to repeat: a row that was written before the connection broke is found in its slot.
        return await retry(write)


async def claim(
    connection: Connection,
    statements: Statements,
    records: Sequence[StepRecord],
    seconds: float,
    holds: Callable[[str], bool],
) -> Sequence[StepRecord]:
    """Claim the slot of each record. Return the holder of each slot, the record itself if it won.

    Notifies watches, except about runs that this store `holds` and that don't end: all commits that notify wait for each other.
    """
    told = [record.run_id for record in records if not holds(record.run_id) or (record.step_id == FLOW and has_ended(record))]
    holders: dict[tuple[str, str, int], StepRecord] = {}
    missing = records
    while missing:
        if await _insert(connection, statements, missing, seconds, told) == len(missing):
            break
        slots = map(list, zip(*map(slot_of, missing), strict=True))
        for holder in map(statements.record, await connection.fetch(statements.holders, *slots, timeout=seconds)):
            holders[slot_of(holder)] = holder
        # A slot that was taken and is now empty was cleared in between: claim it again.
        missing = [record for record in missing if slot_of(record) not in holders]
    if not holders:
        return records
    pairs = [(record, holders.get(slot_of(record), record)) for record in records]
    return [record if holder.id == record.id else holder for record, holder in pairs]


async def _insert(
    connection: Connection, statements: Statements, records: Sequence[StepRecord], seconds: float, told: Collection[str]
) -> int:
    """Insert the records with empty slots, flows also into the index, and notify the watches of `told`. Return how many."""
    # Every batch inserts in the order of the key, so that no two batches deadlock.
    rows = as_json(sorted(records, key=slot_of))
    flows = [record for record in records if record.step_id == FLOW]
    if not flows and not told:
        done = await connection.execute(statements.insert, rows, timeout=seconds)
        return int(done.rpartition(" ")[2])
    if flows:
        states = [flow.id for flow in flows], [state_of(flow) for flow in flows]
        inserted: int = await connection.fetchval(statements.insert_flows, rows, told, *states, timeout=seconds)
    else:
        inserted = await connection.fetchval(statements.insert_and_tell, rows, told, timeout=seconds)
    return inserted
