"""Turns the driver's exceptions into errors that say what to do."""

from __future__ import annotations

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from durable_core.errors import CorruptLog, StoreError

from ._scripts import FOREIGN, HOLE


def store_error(error: Exception, keys: str, *, appends: bool = False) -> StoreError:
    """Make the `StoreError` for an error of the driver in a call on `keys`. `appends` says that the call was an append."""
    said = str(error)
    if isinstance(error, StoreError):
        return error
    if isinstance(error, AuthenticationError) or said.startswith(("NOAUTH", "WRONGPASS")):
        return StoreError(
            f"the server refused the user name or password ({said}); put the right ones into the URL: redis://user:password@host"
        )
    if isinstance(error, NoPermissionError):
        return StoreError(f"the server's user may not do this ({said}); grant it the rights that the store's documentation lists")
    if isinstance(error, OutOfMemoryError) or said.startswith("OOM"):
        return StoreError(f"the server is full ({said}); nothing was written: raise its maxmemory or make room, and try again")
    if said.startswith("WRONGTYPE") or FOREIGN in said:
        return StoreError(f"{keys} contains something that this store did not write; use another prefix, or remove that key")
    if HOLE in said:
        return CorruptLog(
            f"{keys} lacks a field that another field refers to ({said}); nothing was skipped and nothing was changed"
        )
    if isinstance(error, MovedError):
        return StoreError("the server is a node of a cluster; add cluster=true to the URL, or use RedisStore(RedisCluster(...))")
    if isinstance(error, (AskError, TryAgainError)):
        return StoreError(
            f"{keys} is moving to another node of the cluster ({said}), so its copies can't be confirmed yet; try again"
        )
    if isinstance(error, ReadOnlyError):
        return StoreError(f"the server is a replica ({said}); connect to the primary")
    if isinstance(error, (ConnectionError, TimeoutError, OSError)):
        advice = "is it up? check its address in the URL, and try again"
        if appends:
            advice = "the record may have been stored or not: append it again"
        return StoreError(f"no answer from the server ({said}); {advice}")
    if "WAITAOF" in said and "unknown command" in said.lower():
        return StoreError("the server has no WAITAOF, which Redis 7.2 introduced; leave out waitaof=, or upgrade the server")
    if "WAITAOF" in said:
        return StoreError(f"the server can't do what waitaof= asks for ({said}); turn on its appendonly, or leave out waitaof=")
    if isinstance(error, ResponseError):
        return StoreError(f"the server refused to work on {keys}: {said}")
    return StoreError(f"redis-py could not reach {keys}: {said or type(error).__name__}")
