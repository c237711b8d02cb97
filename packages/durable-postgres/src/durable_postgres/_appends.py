"""Claiming slots: many appends, one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asyncpg import Connection

from durable_core import Batcher, StepRecord

from ._connections import Connections, Kept
from ._errors import Refused, persistently
from ._rows import Row, Statements, as_json, to_record

WRITERS: Final = 2
_SECONDS: Final = 10.0


class Appends:
    """Combines concurrent appends into few inserts, by two writers: the server works for one while Python does for the other.

    A run's appends all go to one of them.
    """

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._writers: Final = tuple(Writer(connections, statements) for _ in range(WRITERS))

    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot; return the record that holds it."""
        writer = self._writers[hash(record.run_id) % WRITERS]
        return await writer.submit(Row.of(record)) or record

    async def close(self) -> None:
        for writer in self._writers:
            await writer.close()


class Writer:
    """A connection that inserts one batch at a time."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._kept: Final = Kept(connections)
        self._statements: Final = statements
        self.submit: Final = Batcher(self._flush, size=lambda row: row.size, refused=Refused).submit

    async def close(self) -> None:
        await self._kept.close()

    async def _flush(self, rows: Sequence[Row]) -> Sequence[StepRecord | None]:
        async def write() -> Sequence[StepRecord | None]:
            async with self._kept.use() as connection:
                return await claim(connection, self._statements, rows)

        # A row that was written before the connection broke holds its slot: claiming it again finds it there.
        return await persistently(write)


async def claim(connection: Connection, statements: Statements, rows: Sequence[Row]) -> Sequence[StepRecord | None]:
    """Claim the slot of each row; return for each the record that holds its slot, or None where that is the row itself."""
    holders: dict[tuple[str, str, int], StepRecord] = {}
    missing = rows
    while missing:
        if await _insert(connection, statements, missing) == len(missing):
            break
        slots = zip(*(row.slot for row in missing), strict=True)
        for found in await connection.fetch(statements.holders, *map(list, slots), timeout=_SECONDS):
            record = to_record(found)
            holders[record.run_id, record.step_id, record.revision] = record
        # A slot that was taken and is empty now has been cleared in between: claim it again.
        missing = [row for row in missing if row.slot not in holders]
    return [None if (holder := holders.get(row.slot)) is None or holder.id == row.id else holder for row in rows]


async def _insert(connection: Connection, statements: Statements, rows: Sequence[Row]) -> int:
    if len(rows) == 1:
        done = await connection.execute(statements.insert, *rows[0].values, timeout=_SECONDS)
    else:
        # In the order of the key, as every other batch, so that no two of them wait for each other.
        ordered = sorted(rows, key=lambda row: row.slot)
        done = await connection.execute(statements.insert_many, as_json(ordered), timeout=_SECONDS)
    return int(done.rpartition(" ")[2])
