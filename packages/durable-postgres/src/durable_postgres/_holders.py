"""Who holds a run, and since when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from durable_core import Batcher
from durable_core.store import Holder

from ._connections import Connections

# The advisory locks of this database that are held, by which of the server's processes.
_HELD: Final = """
    (select pid, (classid::bigint << 32) | objid::bigint from pg_locks where locktype = 'advisory' and objsubid = 1 and granted
        and database = (select oid from pg_database where datname = current_database())) as held(pid, key)"""


class Holders:
    """Tells who holds a run's lock: the server knows that, and a table beside the log knows since when.

    A lock gets its row there with the next ping after it was taken, so that short runs cost no write.
    """

    def __init__(self, connections: Connections) -> None:
        self._fetch: Final = partial(connections.fetch, within=connections.limits.statement)
        self.get: Final = Batcher(self.find, size=lambda _: 8).submit
        table = connections.table.locks
        self._forget: Final = (
            f"delete from {table} note where not exists (select from {_HELD} where held.pid = note.pid and held.key = note.key)"
        )
        self._note: Final = (
            f"insert into {table} (key, pid, since) select key, $1, since from unnest($2::bigint[], $3::timestamptz[])"
            " as new(key, since) on conflict (key) do update set pid = excluded.pid, since = excluded.since"
        )
        self._read: Final = f"""
            select key, coalesce(nullif(a.application_name, ''), 'the server''s process ' || held.pid), note.since
            from {_HELD} left join pg_stat_activity a using (pid) left join {table} note using (pid, key)
            where key = any($1::bigint[])"""

    async def find(self, keys: Sequence[int]) -> Sequence[Holder | None]:
        """Return the holder of each lock, or None where nobody holds it."""
        found = {key: Holder(name, since) for key, name, since in await self._fetch(self._read, keys)}
        return [found.get(key) for key in keys]

    async def note(self, pid: int, since: Mapping[int, datetime | None]) -> None:
        """Write down since when the server's process `pid` holds these locks, and forget those that nobody holds any more."""
        await self._fetch(self._forget)
        await self._fetch(self._note, pid, [*since], [*since.values()])
