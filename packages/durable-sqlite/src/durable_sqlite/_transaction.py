"""A transaction with a step's own writes and its record."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from durable_core import StepRecord, StoreError

from ._steps import claim
from ._writing import writing


class _RolledBack(Exception):
    """Leaves the transaction without a commit."""


def transact(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], StepRecord | None]) -> StepRecord | None:
    """Call `work`. Commit its writes together with the record that it returns, or roll back. Return the slot's holder."""
    holder = None
    with suppress(_RolledBack), writing(connection):
        record = _kept_open(connection, work)
        if record is not None:
            holder = claim(connection, record)
        if holder is None or holder is not record:
            raise _RolledBack
    return holder


def _kept_open(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], StepRecord | None]) -> StepRecord | None:
    """Call `work`, and don't let it end the transaction: its writes would be committed without its record."""
    refused: list[int] = []

    def authorize(action: int, *_: Any) -> int:
        if action != sqlite3.SQLITE_TRANSACTION:
            return sqlite3.SQLITE_OK
        refused.append(action)
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(authorize)
    try:
        record = work(connection)
    finally:
        connection.set_authorizer(None)
        if refused:
            raise StoreError(
                "the function of a transaction began, committed or rolled back; leave that to the runner, `with connection:`"
                " and `executescript` included, which commit; nothing was written"
            )
    return record
