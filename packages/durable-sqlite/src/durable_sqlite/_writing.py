"""One transaction that writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Connection


@contextmanager
def writing(connection: Connection) -> Iterator[None]:
    """Be the only writer of the file; commit at the end, or roll back on an error."""
    # Never a plain `begin`: a transaction that reads first is refused at once where another has written meanwhile.
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # SQLite itself has rolled back after some errors
            connection.execute("rollback")
        raise
