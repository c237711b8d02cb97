"""The step log of `durable-core` in one SQLite file."""

from .store import SqliteStore

__all__ = ["SqliteStore"]
