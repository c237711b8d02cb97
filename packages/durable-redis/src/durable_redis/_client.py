"""Clients of redis-py: what differs between one server, or Sentinel's choice of one, and a cluster."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import AskError, ConnectionError, RedisError, TryAgainError

from ._scripts import Call

T = TypeVar("T")


class Single:
    """The client of one server."""

    spans_runs: Final = True
    """Whether one call may touch several runs: a cluster keeps them in different slots."""

    def __init__(self, client: Any) -> None:
        self.redis: Final = client

    async def node(self, key: str) -> str:
        """Name the node that serves `key`, of a cluster."""
        return ""

    async def attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` as often as this kind of client needs it."""
        return await work()

    async def send(self, command: tuple[object, ...], key: str) -> Any:
        """Send one command about `key`, and return the answer as bytes."""
        return await self.redis.execute_command(*command, **RAW)

    def by_node(self, calls: Sequence[Call]) -> Sequence[Sequence[Call]]:
        """Split calls into pipelines."""
        return [calls]

    async def pipeline(self, commands: Sequence[tuple[object, ...]], key: str) -> list[Any]:
        """Send commands in one go, to where `key` is; return the answers, errors among them."""
        pipeline = self.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command, **RAW)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    def has_moved(self, answer: object) -> bool:
        """Tell whether an answer says that the key is at another node."""
        return False

    async def leave(self) -> None:
        """Drop idle connections to a server that became a replica: its address may lead to the new primary by now."""
        with suppress(RedisError):  # the reason to leave says more
            await self.redis.connection_pool.disconnect(inuse_connections=False)

    async def keys(self, pattern: str) -> AsyncIterator[str | bytes]:
        """Yield the names of the hashes that match a glob, some of them more than once."""
        async for key in self.redis.scan_iter(match=pattern, count=1000, _type="HASH"):
            yield key


class Cluster(Single):
    """The client of a cluster."""

    spans_runs = False  # type: ignore[misc]  # Final there for those who read it

    async def node(self, key: str) -> str:
        await self.redis.initialize()
        return str(self.redis.get_node_from_key(key).name)

    async def attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try once more on a new connection, and with a new map: redis-py does that for single servers only."""
        await self.redis.initialize()
        try:
            return await work()
        except ConnectionError:
            await self.redis.initialize()
            return await work()

    async def send(self, command: tuple[object, ...], key: str) -> Any:
        return await self.redis.execute_command(*command, **RAW, **self._at(key))

    def by_node(self, calls: Sequence[Call]) -> Sequence[Sequence[Call]]:
        groups: dict[str, list[Call]] = {}
        for call in calls:
            groups.setdefault(self.redis.get_node_from_key(call.keys[0]).name, []).append(call)
        return [*groups.values()]

    async def pipeline(self, commands: Sequence[tuple[object, ...]], key: str) -> list[Any]:
        pipeline = self.redis.pipeline()
        for command in commands:
            pipeline.execute_command(*command, **RAW, **self._at(key))
        # WAIT speaks for the connection that it is sent on: what is redirected elsewhere would not be covered.
        answers: list[Any] = await pipeline.execute(raise_on_error=False, allow_redirections=False)
        return answers

    def has_moved(self, answer: object) -> bool:
        return isinstance(answer, (AskError, TryAgainError))

    async def leave(self) -> None:
        return None

    async def keys(self, pattern: str) -> AsyncIterator[str | bytes]:
        await self.redis.initialize()
        async for key in super().keys(pattern):
            yield key

    def _at(self, key: str) -> dict[str, Any]:
        """Name the node, since WAIT has no key that redis-py could tell it by."""
        return {"target_nodes": [self.redis.get_node_from_key(key)]}


# Bytes even from a client with decode_responses: records are UTF-8, whatever the client decodes with.
RAW: Final[dict[str, Any]] = {"NEVER_DECODE": True}
# What redis-py adds to a pool's settings, and belongs to that pool.
_OF_THE_POOL: Final = ("connection_pool", "maint_notifications", "oss_cluster", "himport", "response_callbacks")


def another(client: Redis | RedisCluster) -> Redis | RedisCluster:
    """Make a client with the settings of this one, for another event loop."""
    if isinstance(client, RedisCluster):
        return _another_cluster(client)
    pool = client.connection_pool
    settings = _settings(pool.connection_kwargs) | {"connection_class": pool.connection_class}
    if not isinstance(pool, SentinelConnectionPool):
        return Redis.from_pool(ConnectionPool(**settings))
    manager = pool.sentinel_manager
    sentinels = [each.connection_pool.connection_kwargs for each in manager.sentinels]
    watchers = Sentinel(  # type: ignore[no-untyped-call]  # redis-py gives it none
        [(each["host"], each["port"]) for each in sentinels],
        min_other_sentinels=manager.min_other_sentinels,
        sentinel_kwargs=manager.sentinel_kwargs,
        **manager.connection_kwargs,
    )
    choice = {"is_master": pool.is_master, "check_connection": pool.check_connection}
    watched = SentinelConnectionPool(pool.service_name, watchers, **choice, **settings)  # type: ignore[no-untyped-call]  # as above
    return Redis.from_pool(watched)


def _another_cluster(client: RedisCluster) -> RedisCluster:
    map_ = client.nodes_manager
    taken = inspect.signature(RedisCluster).parameters
    settings = {name: value for name, value in _settings(client.get_connection_kwargs()).items() if name in taken}
    return RedisCluster(
        startup_nodes=[ClusterNode(node.host, node.port) for node in map_.startup_nodes.values()],
        require_full_coverage=map_.require_full_coverage,
        address_remap=map_.address_remap,
        reinitialize_steps=client.reinitialize_steps,
        retry=client.retry,
        ssl="ssl_cert_reqs" in client.get_connection_kwargs(),
        **settings,
    )


def _settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if not name.startswith(_OF_THE_POOL)}
