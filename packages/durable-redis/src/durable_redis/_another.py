"""Makes a second client with the settings of the first, because a client's connections belong to one event loop."""

from __future__ import annotations

import inspect
from copy import copy
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import SentinelConnectionPool

# redis-py adds these to the settings of a pool. They must not go into another pool.
_OF_THE_POOL: Final = ("connection_pool", "maint_notifications", "oss_cluster", "himport", "response_callbacks")


def another(client: Redis | RedisCluster) -> Redis | RedisCluster:
    """Make a client with the settings of this one, for another event loop."""
    if isinstance(client, RedisCluster):
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
    pool = client.connection_pool
    settings = _settings(pool.connection_kwargs) | {"connection_class": pool.connection_class}
    if not isinstance(pool, SentinelConnectionPool):
        return Redis.from_pool(ConnectionPool(**settings))
    watchers = copy(pool.sentinel_manager)
    watchers.sentinels = [another(each) for each in watchers.sentinels]
    choice = {"is_master": pool.is_master, "check_connection": pool.check_connection}
    watched = SentinelConnectionPool(pool.service_name, watchers, **choice, **settings)  # type: ignore[no-untyped-call]  # as above
    return Redis.from_pool(watched)


def _settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if not name.startswith(_OF_THE_POOL)}
