"""Calls to a server or cluster from one event loop: scripts by hash, copies waited for, errors store_error."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Final, TypeVar

from redis.asyncio import RedisCluster
from redis.exceptions import ReadOnlyError

from durable_core.errors import StoreError

from ._client import Cluster, Single
from ._copies import Copies
from ._durability import DataLossWarning, level_of_the_program, loss
from ._errors import store_error
from ._held import HeldConnection
from ._pipeline import Pipelines, by_hash
from ._scripts import Call

T = TypeVar("T")


class Server:
    """One client; at most `limit` calls are in flight. What goes wrong is a `StoreError`.

    `expires` says whether runs do, and so which of the server's settings would lose them; with None nobody looks at these. With
    `holds`, one of the connections is kept for appends: not of a pool that others use too, and may have made small.
    """

    def __init__(
        self,
        client: Any,
        *,
        copies: Copies,
        limit: int | None,
        expires: bool | None = None,
        holds: bool = False,
    ) -> None:
        self._client: Final = Cluster(client) if isinstance(client, RedisCluster) else Single(client)
        self.copies: Final = copies
        self.spans_runs: Final = self._client.spans_runs
        self._pipelines: Final = Pipelines(self._client, copies)
        self._expires: Final = expires
        self._held: Final = HeldConnection(client.connection_pool) if self._may_hold(holds, limit) else None
        if limit is not None and self._held is not None:
            limit -= 1
        self._turn: Final[AbstractAsyncContextManager[None]] = nullcontext() if limit is None else asyncio.Semaphore(limit)
        self._examined = expires is None

    def _may_hold(self, holds: bool, limit: int | None) -> bool:
        return holds and self.spans_runs and not self.copies and limit != 1

    async def reach(self) -> None:
        """Have the server answer once, about its settings. Where it doesn't, nothing else was sent to it."""
        if not self._examined:
            async with self._turn:
                await self._reach()

    async def call(self, call: Call, *, confirm: bool = False) -> Any:
        """Run one script; with `confirm`, the copies asked for exist when this returns."""
        if confirm and self.copies:
            (reply,) = await self.call_all([call], confirm=True)
            if isinstance(reply, StoreError):
                raise reply
            return reply
        return await self._guarded(partial(self._pipelines.send, call), call)

    async def append(self, call: Call) -> Any:
        """Run one script of appends, and confirm it; one at a time."""
        if self._held is None:
            return await self.call(call, confirm=True)
        await self._reach()
        return await self._try(partial(by_hash, self._held.execute, call), call.keys[0], appends=call.appends)

    async def call_all(self, calls: Sequence[Call], *, confirm: bool = False) -> list[Any]:
        """Run scripts as one pipeline. Where one of them failed, its reply is the `StoreError`."""
        work = partial(self._pipelines.run, calls, confirm=confirm and bool(self.copies))
        return await self._guarded(work, calls[0])

    async def node(self, key: str) -> str:
        """Name the cluster's node that serves `key`; nothing on a single server."""
        try:
            return await self._client.node(key)
        except Exception as error:
            raise store_error(error, key) from error

    async def keys(self, pattern: str) -> AsyncIterator[str | bytes]:
        """Yield the names of the hashes that match a glob, some of them more than once."""
        try:
            async for key in self._client.keys(pattern):
                yield key
        except Exception as error:
            raise store_error(error, pattern) from error

    async def close(self) -> None:
        """Give back what is held."""
        if self._held is not None:
            await self._held.close()

    async def _guarded(self, work: Callable[[], Awaitable[T]], call: Call) -> T:
        async with self._turn:
            await self._reach()
            return await self._try(work, call.keys[0], appends=call.appends)

    async def _reach(self) -> None:
        if not self._examined:
            await self._try(self._examine, "its settings")

    async def _examine(self) -> None:
        self._examined = True
        try:
            danger = await loss(self._client.redis, expires=bool(self._expires))
        except BaseException:
            self._examined = False
            raise
        if danger:
            warnings.warn(danger, DataLossWarning, stacklevel=level_of_the_program())

    async def _try(self, work: Callable[[], Awaitable[T]], keys: str, *, appends: bool = False) -> T:
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            answer = await self._client.attempt(work)
        except Warning:  # where warnings are errors, this one stays what it is
            raise
        except Exception as error:
            if isinstance(error, ReadOnlyError):
                await self._client.leave()
                if self._held is not None:
                    self._held.leave()
            raise store_error(error, keys, appends=appends) from error
        if task and task.cancelling() > cancellations:
            raise asyncio.CancelledError  # redis-py awaits with wait_for, which loses a cancellation in Python 3.11
        return answer
