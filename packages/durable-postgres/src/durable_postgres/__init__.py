"""A store for `durable-core` in PostgreSQL."""

from ._schema import schema_sql
from ._transaction import Transaction
from .errors import ConnectionLost, RowRefused, TransactionConflict
from .store import PostgresStore

__all__ = ["ConnectionLost", "PostgresStore", "RowRefused", "Transaction", "TransactionConflict", "schema_sql"]
