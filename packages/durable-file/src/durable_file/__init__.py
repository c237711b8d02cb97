"""The file store of durable: JSON Lines on a local disk, for any number of processes."""

from .store import FileStore

__all__ = ["FileStore"]
