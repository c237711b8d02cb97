"""A store in Redis or Valkey: `open_store("redis://localhost:6379/0")`, or `RedisStore` with a client of redis-py."""

from ._durability import DataLossWarning
from .store import RedisStore

__all__ = ["DataLossWarning", "RedisStore"]
