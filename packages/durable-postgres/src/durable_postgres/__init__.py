"""The step log of `durable-core` in PostgreSQL."""

from ._schema import schema_sql
from ._transaction import Transaction
from .store import PostgresStore

__all__ = ["PostgresStore", "Transaction", "schema_sql"]
