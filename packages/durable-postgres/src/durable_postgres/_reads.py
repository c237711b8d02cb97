"""Reading many steps or short runs in one statement, and a long run page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Final

from asyncpg import Connection

from durable_core import Batcher, StepRecord

from ._connections import Connections, OwnConnection, drop, is_open
from ._errors import retry
from ._rows import Statements
from .errors import RowRefused

SHORT: Final = 200
_PAGE: Final = 1_000

Asked = tuple[str, str | None]


def _weight(asked: Asked) -> int:
    return 5 if asked[1] is None else 1


class Reads:
    """Reads newest entries and whole runs; concurrent reads share statements."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections: Final = connections
        self._statements: Final = statements
        self._limits: Final = connections.limits
        self._own: Final = OwnConnection(connections)
        # At most 500 steps or 100 runs a statement: a step is one row, and a short run may be 200.
        self._batcher: Final = Batcher(self._flush, size=_weight, max_items=500, max_bytes=500, refused=RowRefused)

    async def step(self, run_id: str, step_id: str) -> StepRecord | None:
        """Read the newest entry of a step."""
        found = await self._batcher.submit((run_id, step_id))
        return found[0] if found else None

    async def run(self, run_id: str) -> Sequence[StepRecord]:
        """Read all entries of a run in order."""
        records = await self._batcher.submit((run_id, None))
        return await retry(lambda: self._long(run_id)) if len(records) > SHORT else records

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        """Read the newest entries of those steps that have one above the revision that is known.

        Raises `RowRefused` for a row that can't be read once there is nothing else to return: it hides no other.
        """

        async def read() -> Sequence[StepRecord]:
            async with self._connections.borrow() as connection:
                columns = [*map(list, zip(*known, strict=True))]
                return await self._records(connection, self._statements.newer, columns, columns[0], self._limits.statement)

        refusal: RowRefused | None = None
        found: Sequence[StepRecord] = []
        while known:
            try:
                found = await retry(read)
                break
            except RowRefused as error:
                if error.step is None:
                    raise
                refusal, known = error, [each for each in known if each[:2] != error.step]
        if refusal is not None and not found:
            raise refusal
        return found

    async def close(self) -> None:
        await self._own.close()

    async def _flush(self, asked: Sequence[Asked]) -> Sequence[Sequence[StepRecord]]:
        async def read() -> Sequence[Sequence[StepRecord]]:
            found: dict[Asked, list[StepRecord]] = {each: [] for each in asked}
            steps = [each for each in found if each[1] is not None]
            runs = [run_id for run_id, step_id in found if step_id is None]
            async with self._own.use() as connection:
                if steps:
                    columns = [*map(list, zip(*steps, strict=True))]
                    for record in await self._records(
                        connection, self._statements.newest, columns, columns[0], self._limits.statement
                    ):
                        found[record.run_id, record.step_id].append(record)
                if runs:
                    for record in await self._records(
                        connection, self._statements.read_short, [runs, SHORT + 1], runs, self._limits.read
                    ):
                        found[record.run_id, None].append(record)
            return [found[each] for each in asked]

        return await retry(read)

    async def _long(self, run_id: str) -> Sequence[StepRecord]:
        async with self._connections.borrow() as connection:
            return [record async for page in self.pages(connection, run_id) for record in page]

    async def pages(self, connection: Connection, run_id: str) -> AsyncGenerator[Sequence[StepRecord]]:
        """Read a run of any length, a page in memory at a time."""
        # One statement, and so one snapshot: separate reads could show a later entry without an earlier one.
        sql = connection.transaction(readonly=True)
        await self._connections.timed(connection, sql.start(), within=self._limits.read)
        try:
            cursor = await connection.cursor(self._statements.read, run_id, timeout=self._limits.read)
            while page := await self._statements.records(
                cursor.fetch(_PAGE, timeout=self._limits.read), connection, (run_id,), self._limits.read
            ):
                yield page
        except asyncio.CancelledError:
            drop(connection)  # whoever is cancelled awaits nothing more
            raise
        finally:
            if is_open(connection):
                await self._connections.timed(connection, sql.rollback(), within=self._limits.read)

    async def _records(
        self, connection: Connection, query: str, arguments: Sequence[Any], run_ids: Iterable[str], seconds: float
    ) -> Sequence[StepRecord]:
        rows = connection.fetch(query, *arguments, timeout=seconds)
        return await self._statements.records(rows, connection, run_ids, seconds)
