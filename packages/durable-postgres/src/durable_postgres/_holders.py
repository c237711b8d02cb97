"""Who holds a run, and since when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from durable_core import Batcher, StoreError
from durable_core.store import Holder

from ._connections import Connections

_log: Final = logging.getLogger("durable_postgres")


class Holders:
    """Tells who holds a run's lock: the server knows that, and a table beside the log knows since when.

    A lock gets its row there with the next ping after it was taken, so that short runs cost no write.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._seconds: Final = connections.limits.statement
        self._notes: Mapping[int, datetime | None] = {}
        self.get: Final = Batcher(self.find, size=lambda _: 8).submit
        table = connections.table.locks
        self._forget: Final = (
            f"delete from {table} where pid = $1 and key = any($2::bigint[])"
            " or pid <> all (array(select pid from pg_stat_activity))"
        )
        self._note: Final = (
            f"insert into {table} (key, pid, since) select key, $1, since from unnest($2::bigint[], $3::timestamptz[])"
            " as new(key, since) on conflict (key) do update set pid = excluded.pid, since = excluded.since"
        )
        self._read: Final = f"""
            select held.key, coalesce(nullif(a.application_name, ''), 'the server''s process ' || held.pid), note.since
            from (select pid, (classid::bigint << 32) | objid::bigint from pg_locks where locktype = 'advisory' and objsubid = 1
                and granted and database = (select oid from pg_database where datname = current_database())) as held(pid, key)
            left join pg_stat_activity a on a.pid = held.pid
            left join {table} note on note.key = held.key and note.pid = held.pid
            where held.key = any($1::bigint[])"""

    async def find(self, keys: Sequence[int]) -> Sequence[Holder | None]:
        """Return the holder of each lock, or None where nobody holds it."""
        rows = await self._connections.fetch(self._read, keys, within=self._seconds)
        found = {key: Holder(name, since) for key, name, since in rows}
        return [found.get(key) for key in keys]

    async def note(self, pid: int, held: Mapping[int, datetime | None]) -> None:
        """Write down since when the server's process `pid` holds these locks, or leave it to the next time."""
        new = {key: since for key, since in held.items() if self._notes.get(key) != since}
        gone = self._notes.keys() - held
        if new or gone:
            try:
                async with asyncio.timeout(self._seconds):
                    await self._connections.fetch(self._forget, pid, [*gone], within=self._seconds)
                    await self._connections.fetch(self._note, pid, [*new], [*new.values()], within=self._seconds)
                    self._notes = held
            except (StoreError, TimeoutError) as error:
                _log.info("others can't learn since when runs are held: %r", error)
