"""The table of wake-ups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from sqlite3 import Connection
from typing import Final

from durable_core.store import WakeUp

from ._rows import text_of
from ._writing import writing

_SET: Final = "insert into durable_wakeups (token, run_id, flow, at, shows_at) values (?, ?, ?, ?, ?)"
_DUE: Final = "select at, token, run_id, flow from durable_wakeups where flow = ? and shows_at <= ? order by shows_at limit ?"
_HIDE: Final = "update durable_wakeups set shows_at = ? where token = ?"
_CLEAR: Final = "delete from durable_wakeups where token = ?"


def set_one(connection: Connection, wakeup: WakeUp) -> None:
    with writing(connection):
        at = text_of(wakeup.at)
        connection.execute(_SET, (wakeup.token, wakeup.run_id, wakeup.flow, at, at))


def take(connection: Connection, flows: Collection[str], limit: int, now: datetime, hidden: timedelta) -> Sequence[WakeUp]:
    """Return those that are due, and hide them."""
    if not _due(connection, flows, limit, now):  # most looks find nothing, and keep no writer waiting
        return ()
    with writing(connection):
        due = _due(connection, flows, limit, now)
        shows_at = text_of(now + hidden)
        connection.executemany(_HIDE, [(shows_at, wakeup.token) for wakeup in due])
    return due


def clear(connection: Connection, wakeups: Sequence[WakeUp]) -> None:
    with writing(connection):
        connection.executemany(_CLEAR, [(wakeup.token,) for wakeup in wakeups])


def _due(connection: Connection, flows: Collection[str], limit: int, now: datetime) -> Sequence[WakeUp]:
    rows: list[tuple[str, str, str, str]] = []
    for flow in frozenset(flows):
        rows += connection.execute(_DUE, (flow, text_of(now), limit))
    return [
        WakeUp(run_id=run_id, flow=flow, at=datetime.fromisoformat(at), token=token, now=now)
        for at, token, run_id, flow in sorted(rows)[:limit]
    ]
