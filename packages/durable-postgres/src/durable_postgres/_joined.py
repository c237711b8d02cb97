"""Joins a transaction that the caller began on its own connection."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from asyncpg import Connection

from durable_core import StepRecord, StoreError
from durable_core.store import Joined, WakeUp

from ._appends import claim
from ._connections import Connections
from ._errors import driver_errors
from ._rows import Statements
from ._wakeups import new_wakeup, set_wakeups

_NEWEST: Final = -1


class JoinedTransaction(Joined):
    """Reads and appends in the caller's transaction. Never ends it, and never closes its connection."""

    def __init__(self, connections: Connections, statements: Statements, holds: Callable[[str], bool], connection: Any) -> None:
        if not isinstance(connection, Connection):
            raise TypeError(
                f"connection must be an asyncpg connection, not {connection!r}: this store can't join any other transaction"
            )
        self._connections: Final = connections
        self._statements: Final = statements
        self._holds: Final = holds
        self._seconds: Final = connections.limits.statement
        self._connection: Final = connection
        self._check()

    async def append(self, record: StepRecord) -> StepRecord:
        await self._begun()
        with driver_errors(self._connections):
            (holder,) = await claim(self._connection, self._statements, [record], self._seconds, self._holds)
        return holder

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        await self._begun()
        asked = [run_id], [step_id], [_NEWEST]
        with driver_errors(self._connections):
            rows = await self._connection.fetch(self._statements.newer, *asked, timeout=self._seconds)
        return self._statements.record(rows[0]) if rows else None

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        await self._begun()
        with driver_errors(self._connections):
            (wakeup,) = await set_wakeups(self._connection, self._statements, [new_wakeup(run_id, flow, at)], self._seconds)
        return wakeup

    async def _begun(self) -> None:
        await self._connections.ready()
        self._check()

    def _check(self) -> None:
        with driver_errors(self._connections):
            is_begun = self._connection.is_in_transaction()
        if not is_begun:
            raise StoreError(
                f"{self._connections}: the connection is not in a transaction; begin one: `async with connection.transaction():`"
            )
