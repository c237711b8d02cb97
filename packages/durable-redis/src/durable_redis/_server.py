"""Calls to a server or cluster from one event loop. Waits for copies, and raises `StoreError`."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from itertools import repeat
from typing import Any, Final, TypeVar

from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from durable_core.errors import StoreError
from durable_core.stores.batcher import Batcher

from ._client import Cluster, Single
from ._copies import Copies
from ._durability import DataLossWarning, loss
from ._errors import store_error
from ._held import HeldConnection
from ._scripts import APPEND, Call, Item, Script, call_for
from ._watches import Watches

T = TypeVar("T")

_CALL_ITEMS: Final = 25  # more in one call would hold up the server's other clients
_ROUNDS: Final = 4


class Server:
    """Calls scripts through one client, at most `limit` at the same time. All errors are `StoreError`.

    `expires` says whether runs expire, which decides what settings of the server would lose them; None skips that check. `holds`
    keeps one connection of the pool for appends. Leave it off for a client that others use too: its pool may be small.
    """

    def __init__(
        self,
        client: Any,
        *,
        copies: Copies,
        limit: int | None = None,
        expires: bool | None = None,
        holds: bool = False,
    ) -> None:
        self._client: Final = Cluster(client) if isinstance(client, RedisCluster) else Single(client)
        self._copies: Final = copies
        self._expires: Final = expires
        holds = holds and self._client.spans_runs and not copies and limit != 1
        self._held: Final = HeldConnection(client.connection_pool) if holds else None
        self._turn: Final[AbstractAsyncContextManager[None]] = asyncio.Semaphore(limit - holds) if limit else nullcontext()
        self._examined = expires is None
        self._examine: Final = Batcher(self._settings, size=lambda _: 1).submit
        self._batchers: Final[dict[tuple[Script, str], Batcher[Item, Any]]] = {}
        self.watches: Final = Watches(self._client.connection)
        self.pid: Final = os.getpid()

    async def reach(self) -> None:
        """Check the server's settings, once. If the server doesn't answer, nothing else has been sent to it."""
        if not self._examined:
            await self._examine(None)  # one request for all callers that begin at once, or each would open a connection

    async def submit(self, script: Script, item: Item) -> Any:
        """Run a script for one item. Concurrent submits share a call."""
        node = ""
        if isinstance(self._client, Cluster):
            node = await self._try(partial(self._client.node, item[0]), item[0])
        # One batcher for each node, so that an unreachable node delays only its own runs.
        if (script, node) not in self._batchers:
            self._batchers[script, node] = Batcher(partial(self.answers, script), size=lambda item: len(item[1]))
        return _sound(await self._batchers[script, node].submit(item))

    async def ask(self, script: Script, items: Sequence[Item], *, confirm: bool = True) -> Sequence[Any]:
        """Run a script for items in one round trip. Return an answer for each, or raise the first error among them.

        With `confirm`, returns only once the required copies exist.
        """
        return [_sound(answer) for answer in await self.answers(script, items, confirm=confirm)]

    async def keys(self, pattern: str) -> AsyncIterator[str | bytes]:
        """Yield the names of the hashes that match a glob, some of them more than once."""
        try:
            async for key in self._client.keys(pattern):
                yield key
        except Exception as error:
            raise store_error(error, pattern) from error

    async def close(self) -> None:
        """Close the client."""
        if self._held is not None:
            await self._held.close()
        await self._client.close()

    async def _settings(self, askers: Sequence[None]) -> Sequence[None]:
        if not self._examined:
            danger = await self._try(partial(loss, self._client.redis, expires=bool(self._expires)), "its settings")
            self._examined = True
            if danger:
                warnings.warn(danger, DataLossWarning, stacklevel=1)
        return askers

    async def answers(self, script: Script, items: Sequence[Item], *, confirm: bool = True) -> Sequence[Any]:
        """Like `ask`, but return errors among the answers."""
        most, appends = _CALL_ITEMS if self._client.spans_runs else 1, script is APPEND
        chunks = [items[start : start + most] for start in range(0, len(items), most)]
        calls = [call_for(script, chunk) for chunk in chunks]
        on_held = self._held is not None and appends and len(calls) == 1
        replies: Sequence[Any] = []
        if calls:
            async with nullcontext() if on_held else self._turn:
                await self.reach()
                work = partial(self._rounds, calls, confirm=confirm and bool(self._copies))
                replies = await self._try(work, items[0][0], appends=appends)
        answers: list[Any] = []
        for chunk, reply in zip(chunks, replies, strict=True):
            answers += repeat(reply, len(chunk)) if reply is None or isinstance(reply, Exception) else reply
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            await self._client.leave()
            if self._held is not None:
                await self._held.leave()
        return [
            store_error(answer, item[0], appends=appends) if isinstance(answer, Exception) else answer
            for answer, item in zip(answers, items, strict=True)
        ]

    async def _rounds(self, calls: Sequence[Call], *, confirm: bool) -> Sequence[Any]:
        """Run scripts in pipelines. Send a call again if the server lacked the script, or if its slot has moved."""
        if len(calls) == 1 and not confirm:
            return [await self._send(calls[0])]
        replies: dict[Call, Any] = {}
        left, known = calls, True
        for _ in range(_ROUNDS):
            for group in self._client.by_node(left):
                replies.update(zip(group, await self._round(group, known=known, confirm=confirm), strict=True))
            unknown = [call for call in left if isinstance(replies[call], NoScriptError)]
            moved = [call for call in left if self._client.has_moved(replies[call])]
            for call in moved:
                # Follows the redirection and updates the map, but waits for no copies. Running a script twice changes nothing.
                reply = await self._send(call)
                replies[call] = replies[call] if confirm else reply
            left, known = unknown + (moved if confirm else []), not unknown
            if not left:
                break
        return [replies[call] for call in calls]

    async def _round(self, calls: Sequence[Call], *, known: bool, confirm: bool) -> Sequence[Any]:
        """Run scripts on one node in a pipeline, followed by the commands that wait for copies."""
        commands = [call.command(known=known) for call in calls]
        answers = await self._client.pipeline([*commands, *(self._copies.commands if confirm else ())], calls[0].keys[0])
        replies = answers[: len(calls)]
        if confirm and (shortage := self._copies.shortage(answers[len(calls) :], calls[0].keys[0])):
            return [reply if isinstance(reply, Exception) else shortage for reply in replies]
        return replies

    async def _send(self, call: Call) -> Any:
        if self._held is not None and call.script is APPEND:
            return await _by_hash(self._held.execute, call)
        return await _by_hash(lambda command: self._client.send(command, call.keys[0]), call)

    async def _try(self, work: Callable[[], Awaitable[T]], keys: str, *, appends: bool = False) -> T:
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            answer = await self._client.attempt(work)
        except Exception as error:
            raise store_error(error, keys, appends=appends) from error
        if task and task.cancelling() > cancellations:
            raise asyncio.CancelledError  # redis-py awaits with wait_for, which loses a cancellation in Python 3.11
        return answer


async def _by_hash(execute: Callable[[tuple[object, ...]], Awaitable[Any]], call: Call) -> Any:
    """Run a script by its hash, or by its source if the server lacks it. Return an error of the server as the answer."""
    try:
        try:
            return await execute(call.command())
        except NoScriptError:
            return await execute(call.command(known=False))
    except ResponseError as error:
        return error


def _sound(answer: Any) -> Any:
    if isinstance(answer, StoreError):
        raise answer
    return answer
