"""The table of wake-ups."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from sqlite3 import Connection
from typing import Final

from durable_core.record import check_id
from durable_core.store import WakeUp

from ._errors import file_of
from ._rows import text_of
from ._writing import writing

_SET: Final = "insert into durable_wakeups (token, run_id, flow, at, shows_at) values (?, ?, ?, ?, ?)"
_DUE: Final = "select at, token, run_id, flow from durable_wakeups where flow = ? and shows_at <= ? order by shows_at limit ?"
_HIDE: Final = "update durable_wakeups set shows_at = ? where token = ?"
_CLEAR: Final = "delete from durable_wakeups where token = ?"

_log: Final = logging.getLogger("durable_sqlite")


def set_one(connection: Connection, wakeup: WakeUp) -> None:
    with writing(connection):
        at = text_of(wakeup.at)
        connection.execute(_SET, (wakeup.token, wakeup.run_id, wakeup.flow, at, at))


def take(connection: Connection, flows: Collection[str], limit: int, now: datetime, hidden: timedelta) -> Sequence[WakeUp]:
    """Return the wake-ups that are due, and hide them. Passes over a damaged one: the next sweep finds its run."""
    if not _due(connection, flows, limit, now):  # most calls find nothing, and should not make writers wait
        return ()
    with writing(connection):
        due = _due(connection, flows, limit, now)
        shows_at = text_of(now + hidden)
        connection.executemany(_HIDE, [(shows_at, token) for _, token, _, _ in due])
    wakeups = []
    for at, token, run_id, flow in due:
        try:
            check_id("run_id", run_id)
            wakeups.append(WakeUp(run_id=run_id, flow=flow, at=datetime.fromisoformat(at), token=token, now=now))
        except (TypeError, ValueError) as error:
            _log.warning("%s: the wake-up %r of run %r is damaged: %s", file_of(connection), token, run_id, error)
    return wakeups


def clear(connection: Connection, wakeups: Sequence[WakeUp]) -> None:
    with writing(connection):
        connection.executemany(_CLEAR, [(wakeup.token,) for wakeup in wakeups])


def _due(connection: Connection, flows: Collection[str], limit: int, now: datetime) -> Sequence[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    for flow in frozenset(flows):
        rows += connection.execute(_DUE, (flow, text_of(now), limit))
    return sorted(rows, key=lambda row: str(row[0]))[:limit]
