"""The errors of the PostgreSQL store; each is a `StoreError`."""

from __future__ import annotations

from durable_core import CorruptLog, StoreError


class ConnectionLost(StoreError):
    """The connection was lost, or could not be made: the work may have been done or not."""


class TransactionConflict(StoreError):
    """The server rolled the transaction back because of another one."""


class RowRefused(StoreError):
    """This row can't be written, or can't be read, now or later."""


class RowDamaged(RowRefused, CorruptLog):
    """This row is no record, or none that this version reads."""
