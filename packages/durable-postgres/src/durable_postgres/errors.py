"""The errors of the PostgreSQL store. Each is a `StoreError`."""

from __future__ import annotations

from durable_core import CorruptLog, StoreError


class ConnectionLost(StoreError):
    """The connection was lost or could not be made. The work may have been done or not."""


class TransactionConflict(StoreError):
    """The server rolled the transaction back because of a conflict with another one."""


class RowRefused(StoreError):
    """This row can't be written or read, now or later."""


class RowDamaged(RowRefused, CorruptLog):
    """This row isn't a record that this version can read."""
