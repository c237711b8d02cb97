"""Wake-ups: a table of messages. Concurrent takers don't wait for each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Final

import msgspec
from asyncpg import Connection
from msgspec.structs import replace

from durable_core import Batcher
from durable_core.store import SupportsWakeups, WakeUp
from durable_core.stores.wakeups import check_time

from ._connections import Connections
from ._errors import retry
from ._rows import Statements
from .errors import RowRefused

_encode: Final = msgspec.json.Encoder().encode


class Wakeups(SupportsWakeups):
    """Sets, takes and clears wake-ups by the server's clock. Concurrent sets share a statement, and so do concurrent clears."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections: Final = connections
        self._statements: Final = statements
        self._seconds: Final = connections.limits.statement
        self._set: Final = Batcher(self._set_all, size=lambda _: 1_500, refused=RowRefused).submit
        self._clear: Final = Batcher(self._clear_all, size=lambda tokens: 30 * len(tokens)).submit

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        return await self._set(new_wakeup(run_id, flow, at))

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        if not flows:
            return ()
        asked = [*frozenset(flows)], limit, visibility_timeout
        rows = await self._connections.fetch(self._statements.take_wakeups, *asked, within=self._seconds)
        return [WakeUp(*row) for row in rows]

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        if wakeups:
            await self._clear([wakeup.token for wakeup in wakeups])

    async def _set_all(self, wakeups: Sequence[WakeUp]) -> Sequence[WakeUp]:
        async def write() -> Sequence[WakeUp]:
            async with self._connections.borrow() as connection:
                return await set_wakeups(connection, self._statements, wakeups, self._seconds)

        return await retry(write)

    async def _clear_all(self, asked: Sequence[Sequence[str]]) -> Sequence[None]:
        tokens = [token for each in asked for token in each]
        await self._connections.fetch(self._statements.clear_wakeups, tokens, within=self._seconds)
        return [None] * len(asked)


def new_wakeup(run_id: str, flow: str, at: datetime) -> WakeUp:
    """Make a wake-up without writing it."""
    check_time(at)
    return WakeUp(run_id=run_id, flow=flow, at=at, token=token_hex(12), now=at)


async def set_wakeups(
    connection: Connection, statements: Statements, wakeups: Sequence[WakeUp], seconds: float
) -> Sequence[WakeUp]:
    """Write wake-ups, and return them with the server's time."""
    try:
        rows = _encode(wakeups).decode()
    except (TypeError, ValueError) as error:
        raise RowRefused(f"the wake-up can't be written: {error}") from error
    now: datetime = await connection.fetchval(statements.set_wakeups, rows, timeout=seconds)
    return [replace(wakeup, now=now) for wakeup in wakeups]
