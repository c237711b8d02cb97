"""Transactions that write, and transactions that read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Connection


@contextmanager
def writing(connection: Connection) -> Iterator[None]:
    """Be the only writer of the file; commit at the end, or roll back on an error."""
    # A plain `begin` takes the lock only at the first write, and fails at once if another has written since its first read.
    with _transaction(connection, "begin immediate"):
        yield


@contextmanager
def reading(connection: Connection) -> Iterator[None]:
    """See the file as it is at the first read, whatever others write meanwhile."""
    with _transaction(connection, "begin"):
        yield


@contextmanager
def _transaction(connection: Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # SQLite has already rolled back after some errors
            connection.execute("rollback")
        raise
