"""Claiming slots, many in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from asyncpg import Connection

from durable_core import Batcher, StepRecord

from ._connections import Connections, OwnConnection
from ._errors import retry
from ._rows import Row, Statements, as_json, size_of, slot_of
from .errors import RowRefused

WRITERS: Final = 2


class Appends:
    """Combines concurrent appends into few inserts. Of two writers one prepares rows while the server inserts for the other."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._writers: Final = tuple(Writer(connections, statements) for _ in range(WRITERS))

    def writer(self, run_id: str) -> Writer:
        """Return the writer of this run's appends."""
        return self._writers[hash(run_id) % WRITERS]

    async def close(self) -> None:
        async with AsyncExitStack() as closing:
            for writer in self._writers:
                closing.push_async_callback(writer.close)


class Writer:
    """A connection that inserts one batch at a time."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._own: Final = OwnConnection(connections)
        self._statements: Final = statements
        self._seconds: Final = connections.limits.statement
        self.submit: Final = Batcher(self._flush, size=size_of, refused=RowRefused).submit

    async def close(self) -> None:
        await self._own.close()

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
    rows = missing = Row.of_all(records)
    while missing:
        if await _insert(connection, statements, missing, seconds) == len(missing):
            break
        slots = zip(*map(slot_of, missing), strict=True)
        found = connection.fetch(statements.holders, *map(list, slots), timeout=seconds)
        for record in await statements.records(found, connection, {row.run_id for row in missing}, seconds):
            holders[record.run_id, record.step_id, record.revision] = record
        # A slot that was taken and is empty now has been cleared in between: claim it again.
        missing = [row for row in missing if slot_of(row) not in holders]
    if not holders:
        return records
    pairs = zip(records, map(holders.get, map(slot_of, rows)), strict=True)
    return [record if holder is None or holder.id == record.id else holder for record, holder in pairs]


async def _insert(connection: Connection, statements: Statements, rows: Sequence[Row], seconds: float) -> int:
    if len(rows) == 1:
        done = await connection.execute(statements.insert, *rows[0].values, timeout=seconds)
    else:
        # In the order of the key, as every other batch, so that no two of them wait for each other.
        ordered = sorted(rows, key=slot_of)
        done = await connection.execute(statements.insert_many, as_json(ordered), timeout=seconds)
    return int(done.rpartition(" ")[2])
