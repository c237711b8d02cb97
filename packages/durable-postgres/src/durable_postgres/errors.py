"""What a store of PostgreSQL tells apart among its errors; each is a `StoreError`."""

from __future__ import annotations

from durable_core import StoreError


class ConnectionLost(StoreError):
    """The connection was lost, or could not be made: what was under way may have happened or not."""


class TransactionConflict(StoreError):
    """The server rolled the transaction back for the sake of another one."""


class RowRefused(StoreError):
    """This row can't be written, or can't be read, now or later."""

    step: tuple[str, str] | None = None
    """The run and step of a row that can't be read."""
