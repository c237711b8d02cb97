"""Calls to the server or cluster: scripts by hash, copies waited for, errors explained."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Final, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import AskError, ConnectionError, NoScriptError, ReadOnlyError, RedisError, ResponseError, TryAgainError

from durable_core.errors import StoreError

from ._copies import Copies
from ._durability import DataLossWarning, level_of_the_program, loss
from ._errors import explained
from ._held import HeldConnection
from ._scripts import APPEND, Script

T = TypeVar("T")

# Bytes even from a client with decode_responses: records are UTF-8, whatever the client decodes with.
_RAW: Final[dict[str, Any]] = {"NEVER_DECODE": True}
_ROUNDS: Final = 4
_REFUSES_WRITES: Final = ("MISCONF", "NOREPLICAS")  # what only a primary says: a replica says READONLY first


class Call:
    """One script to run on the keys of one run."""

    __slots__ = ("args", "keys", "script")

    def __init__(self, script: Script, keys: Sequence[str], *args: object) -> None:
        self.script = script
        self.keys = keys
        self.args = args

    @property
    def appends(self) -> bool:
        return self.script is APPEND

    def command(self, *, known: bool = True) -> tuple[object, ...]:
        return self.script.command(self.keys, self.args, known=known)


class Server:
    """A client of redis-py, of whichever kind. At most `limit` calls are in flight; what goes wrong is a `StoreError`."""

    def __init__(self, client: Redis | RedisCluster, *, copies: Copies, expires: bool, limit: int | None) -> None:
        self._client: Final[Any] = client
        self._cluster: Final = isinstance(client, RedisCluster)
        self.copies: Final = copies
        self.spans_runs: Final = not self._cluster
        """Whether one call may touch several runs: a cluster keeps them in different slots."""
        self._expires: Final = expires
        self._limit: Final = limit
        self._turn: AbstractAsyncContextManager[None] = nullcontext() if limit is None else asyncio.Semaphore(limit)
        self._held: HeldConnection | None = None
        self._examined = False

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
        return await self._guarded(partial(self._alone, call), call)

    async def append(self, call: Call) -> Any:
        """Run one script of appends, and confirm it; one at a time."""
        if self._held is None:
            return await self.call(call, confirm=True)
        await self._reach()
        return await self._explained(partial(_by_hash, self._held.execute, call), call.keys[0], appends=call.appends)

    async def call_all(self, calls: Sequence[Call], *, confirm: bool = False) -> list[Any]:
        """Run scripts as one pipeline. Where one of them failed, its reply is the `StoreError`."""
        work = partial(self._rounds, calls, confirm=confirm and bool(self.copies))
        return await self._guarded(work, calls[0])

    def hold(self) -> None:
        """Keep one of the connections for appends: not of a pool that others use too, and may have made small."""
        if not self._cluster and not self.copies and self._limit != 1 and (self._held is None or self._held.closed):
            self._held = HeldConnection(self._client.connection_pool)
            if self._limit is not None:
                self._turn = asyncio.Semaphore(self._limit - 1)

    async def close(self) -> None:
        """Give back what is held."""
        if self._held is not None:
            await self._held.close()

    async def _guarded(self, work: Callable[[], Awaitable[T]], call: Call) -> T:
        async with self._turn:
            await self._reach()
            return await self._explained(work, call.keys[0], appends=call.appends)

    async def _reach(self) -> None:
        if not self._examined:
            await self._explained(self._examine, "its settings")

    async def _explained(self, work: Callable[[], Awaitable[T]], keys: str, *, appends: bool = False) -> T:
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            answer = await (self._on_cluster(work) if self._cluster else work())
        except Warning:  # where warnings are errors, this one stays what it is
            raise
        except Exception as error:
            if isinstance(error, ReadOnlyError):
                await self._leave()
            raise explained(error, keys, appends=appends) from error
        if task and task.cancelling() > cancellations:
            raise asyncio.CancelledError  # redis-py awaits with wait_for, which loses a cancellation in Python 3.11
        return answer

    async def _leave(self) -> None:
        """Drop idle connections to a server that became a replica: its address may lead to the new primary by now."""
        if not self._cluster:
            with suppress(RedisError):  # the reason to leave says more
                await self._client.connection_pool.disconnect(inuse_connections=False)
        if self._held is not None:
            self._held.leave()

    async def _on_cluster(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try once more on a new connection, and with a new map: redis-py does that for single servers only."""
        await self._client.initialize()
        try:
            return await work()
        except ConnectionError:
            await self._client.initialize()
            return await work()

    async def node(self, key: str) -> str:
        """Name the cluster's node that serves `key`."""
        try:
            await self._client.initialize()
            return str(self._client.get_node_from_key(key).name)
        except Exception as error:
            raise explained(error, key) from error

    async def scan(self, pattern: str) -> AsyncIterator[str]:
        """Yield the names of the hashes that match a glob, some of them more than once."""
        try:
            if self._cluster:
                await self._client.initialize()
            found = self._client.scan_iter(match=pattern, count=1000, _type="HASH")
            async for key in found:
                yield key if isinstance(key, str) else key.decode()
        except Exception as error:
            raise explained(error, pattern) from error

    async def _examine(self) -> None:
        self._examined = True
        try:
            danger = await loss(self._client, expires=self._expires)
        except BaseException:
            self._examined = False
            raise
        if danger:
            warnings.warn(danger, DataLossWarning, stacklevel=level_of_the_program())

    async def _alone(self, call: Call) -> Any:
        """Send a call that waits for no copies, so touches nothing: a server that refuses writes may still be read."""
        try:
            return await self._send(call)
        except ResponseError as error:
            if call.script.reading is None or not str(error).startswith(_REFUSES_WRITES):
                raise
            return await self._send(Call(call.script.reading, call.keys, *call.args))

    async def _send(self, call: Call) -> Any:
        where = self._where(call)
        return await _by_hash(lambda command: self._client.execute_command(*command, **_RAW, **where), call)

    def _where(self, call: Call) -> dict[str, Any]:
        """Name the node, since WAIT has no key that redis-py could tell it by."""
        if not self._cluster:
            return {}
        return {"target_nodes": [self._client.get_node_from_key(call.keys[0])]}

    async def _rounds(self, calls: Sequence[Call], *, confirm: bool) -> list[Any]:
        """Send again what met a server without the script, or a slot that has moved; nothing else is held up by it."""
        replies: dict[Call, Any] = {}
        left, known = [*calls], True
        for _ in range(_ROUNDS):
            for group in self._by_node(left):
                replies.update(zip(group, await self._pipeline(group, known=known, confirm=confirm), strict=True))
            unknown = [call for call in left if isinstance(replies[call], NoScriptError)]
            moved = [call for call in left if self._cluster and isinstance(replies[call], (AskError, TryAgainError))]
            for call in moved:
                # Follows the redirection and learns the new map, without the copies. What runs twice changes nothing.
                reply = await self._send(call)
                replies[call] = replies[call] if confirm else reply
            left, known = unknown + (moved if confirm else []), not unknown
            if not left:
                break
        return [_explained(replies[call], call) for call in calls]

    def _by_node(self, calls: Sequence[Call]) -> Sequence[Sequence[Call]]:
        if not self._cluster:
            return [calls]
        groups: dict[str, list[Call]] = {}
        for call in calls:
            groups.setdefault(self._client.get_node_from_key(call.keys[0]).name, []).append(call)
        return [*groups.values()]

    async def _pipeline(self, calls: Sequence[Call], *, known: bool, confirm: bool) -> Sequence[Any]:
        options: dict[str, Any] = {}
        if self._cluster:
            # WAIT speaks for the connection that it is sent on: what is redirected elsewhere would not be covered.
            pipeline, options["allow_redirections"] = self._client.pipeline(), False
        else:
            pipeline = self._client.pipeline(transaction=False)
        where = self._where(calls[0])
        for call in calls:
            pipeline.execute_command(*call.command(known=known), **_RAW, **where)
        for command in self.copies.commands if confirm else ():
            pipeline.execute_command(*command, **where)
        answers = await pipeline.execute(raise_on_error=False, **options)
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            await self._leave()
        replies: list[Any] = answers[: len(calls)]
        if confirm and (shortage := self.copies.shortage(answers[len(calls) :], calls[0].keys[0])):
            return [reply if isinstance(reply, Exception) else shortage for reply in replies]
        return replies


async def _by_hash(execute: Callable[[tuple[object, ...]], Awaitable[Any]], call: Call) -> Any:
    try:
        return await execute(call.command())
    except NoScriptError:
        return await execute(call.command(known=False))


def _explained(reply: Any, call: Call) -> Any:
    if isinstance(reply, Exception) and not isinstance(reply, StoreError):
        return explained(reply, call.keys[0], appends=call.appends)
    return reply
