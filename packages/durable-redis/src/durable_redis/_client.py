"""Clients of redis-py: the differences between a single server, with Sentinel or without, and a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from redis.exceptions import AskError, ConnectionError, RedisError, TryAgainError

from ._scripts import Call

T = TypeVar("T")

# Answers are bytes even if the client has decode_responses. Records are UTF-8, and the client may have another encoding.
_RAW: Final[dict[str, Any]] = {"NEVER_DECODE": True}


class Single:
    """The client of one server."""

    spans_runs = True
    """True if one call may touch several runs. A cluster keeps them in different slots."""

    def __init__(self, client: Any) -> None:
        self.redis: Final = client
        self._in_flight = 0
        self._is_closed = False

    async def attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`. A cluster tries it again."""
        async with self._open():
            return await self._attempt(work)

    async def send(self, command: tuple[object, ...], key: str) -> Any:
        """Send one command about `key`, and return the answer as bytes."""
        return await self.redis.execute_command(*command, **_RAW, **self._at(key))

    async def pipeline(self, commands: Sequence[tuple[object, ...]], key: str) -> list[Any]:
        """Send commands in one request to the node of `key`; return the answers, including errors."""
        pipeline, options = self._pipeline()
        for command in commands:
            pipeline.execute_command(*command, **_RAW, **self._at(key))
        answers: list[Any] = await pipeline.execute(raise_on_error=False, **options)
        return answers

    def by_node(self, calls: Sequence[Call]) -> Sequence[Sequence[Call]]:
        """Group calls by the node that serves them, one pipeline each."""
        return [calls]

    def has_moved(self, answer: object) -> bool:
        """Return True if an answer says that the key is on another node."""
        return False

    async def connection(self) -> Any:
        """Make a connection outside the pool. It is not connected yet."""
        return self.redis.connection_pool.make_connection()

    async def leave(self) -> None:
        """Drop idle connections to a server that became a replica. Its address may now lead to the new primary."""
        with suppress(RedisError):  # the error that made us leave is the one to raise
            await self.redis.connection_pool.disconnect(inuse_connections=False)

    async def keys(self, pattern: str) -> AsyncIterator[str | bytes]:
        """Yield the names of the hashes that match a glob, some of them more than once."""
        async with self._open():
            async for key in self.redis.scan_iter(match=pattern, count=1000, _type="HASH"):
                yield key

    async def close(self) -> None:
        """Close the client, and all its connections."""
        self._is_closed = True
        await self.redis.aclose()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        """Close the client again after the last call that `close` overtook: redis-py has connected anew for it."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._is_closed and not self._in_flight:
                await self.redis.aclose()

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        return self.redis.pipeline(transaction=False), {}

    def _at(self, key: str) -> dict[str, Any]:
        return {}


class Cluster(Single):
    """The client of a cluster."""

    spans_runs = False

    async def node(self, key: str) -> str:
        """Name the node that serves `key`."""
        return str(self.redis.get_node_from_key(key).name)

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try once more with a new connection and a new map of the cluster. redis-py does so only for single servers."""
        await self.redis.initialize()
        try:
            return await work()
        except ConnectionError:
            await self.redis.initialize()
            return await work()

    def by_node(self, calls: Sequence[Call]) -> Sequence[Sequence[Call]]:
        groups: dict[str, list[Call]] = {}
        for call in calls:
            groups.setdefault(self.redis.get_node_from_key(call.keys[0]).name, []).append(call)
        return [*groups.values()]

    def has_moved(self, answer: object) -> bool:
        return isinstance(answer, (AskError, TryAgainError))

    async def connection(self) -> Any:
        await self.redis.initialize()
        node = self.redis.get_random_node()
        return node.connection_class(**node.connection_kwargs)

    async def leave(self) -> None:
        """Do nothing: the client's map tells which server is a primary."""

    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        # WAIT covers only commands on its own connection, so no command may be redirected to another.
        return self.redis.pipeline(), {"allow_redirections": False}

    def _at(self, key: str) -> dict[str, Any]:
        """Name the node: WAIT has no key from which redis-py could find it."""
        return {"target_nodes": [self.redis.get_node_from_key(key)]}
