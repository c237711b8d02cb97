"""Clients of redis-py: what differs between one server, or Sentinel's choice of one, and a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from redis.exceptions import AskError, ConnectionError, RedisError, TryAgainError

from ._scripts import Call

T = TypeVar("T")

# Bytes even from a client with decode_responses: records are UTF-8, whatever the client decodes with.
_RAW: Final[dict[str, Any]] = {"NEVER_DECODE": True}


class Single:
    """The client of one server."""

    spans_runs = True
    """Whether one call may touch several runs: a cluster keeps them in different slots."""

    def __init__(self, client: Any) -> None:
        self.redis: Final = client

    async def attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, again if this kind of client needs that."""
        return await work()

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
        """Split calls into pipelines."""
        return [calls]

    def has_moved(self, answer: object) -> bool:
        """Return True if an answer says that the key is on another node."""
        return False

    async def connection(self) -> Any:
        """Make a connection beside those of the pool, not connected yet."""
        return self.redis.connection_pool.make_connection()

    async def leave(self) -> None:
        """Drop idle connections to a server that became a replica. Its address may now lead to the new primary."""
        with suppress(RedisError):  # the reason to leave says more
            await self.redis.connection_pool.disconnect(inuse_connections=False)

    async def keys(self, pattern: str) -> AsyncIterator[str | bytes]:
        """Yield the names of the hashes that match a glob, some of them more than once."""
        async for key in self.redis.scan_iter(match=pattern, count=1000, _type="HASH"):
            yield key

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

    async def attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try once more on a new connection, and with a new map: redis-py does that for single servers only."""
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
        # WAIT speaks for the connection that it is sent on: what is redirected elsewhere would not be covered.
        return self.redis.pipeline(), {"allow_redirections": False}

    def _at(self, key: str) -> dict[str, Any]:
        """Name the node, since WAIT has no key that redis-py could tell it by."""
        return {"target_nodes": [self.redis.get_node_from_key(key)]}
