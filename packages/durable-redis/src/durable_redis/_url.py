"""From a URL to a client of redis-py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError

from durable_core.errors import StoreError
from durable_core.stores.urls import StoreURL, boolean, integer, seconds

_PATIENCE: Final = 5.0
_CONNECTION: Final = {"client_name", "db", "health_check_interval", "password", "protocol", "username"}
_SOCKET: Final = {"socket_connect_timeout", "socket_keepalive", "socket_timeout"}
_TRUST: Final = {"ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_check_hostname"}
_IDENTITY: Final = {"ssl_certfile", "ssl_keyfile", "ssl_keyfile_password"}
_DRIVER: Final = frozenset(_CONNECTION | _SOCKET | _TRUST | _IDENTITY)


def _numbers(names: str) -> Callable[[str], tuple[int, ...]]:
    """Make a converter for comma-separated whole numbers, one for each of `names`."""

    def convert(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) != len(names.split(",")) or not all(part.isdecimal() for part in parts):
            raise ValueError(f"expected whole numbers: {names}")
        return tuple(map(int, parts))

    return convert


_OURS: Final[dict[str, Callable[[str], Any]]] = {
    "cluster": boolean,
    "lease": seconds,
    "max_connections": integer(least=1),
    "prefix": str,
    "ttl": seconds,
    "wait": _numbers("replicas,milliseconds"),
    "waitaof": _numbers("local,replicas,milliseconds"),
}


def parse(url: str) -> tuple[Callable[[], Redis | RedisCluster], dict[str, Any]]:
    """Return a function that makes a client without connecting, and the store's own options."""
    address = StoreURL(url)
    if address.scheme != "unix":
        address.require_server()
    options = address.options(_OURS, also=_DRIVER)
    cluster = options.pop("cluster", False)
    _check_path(address, cluster=cluster)
    # Don't time out while the server waits for copies.
    patience = _PATIENCE + (options.get("wait", (0,))[-1] + options.get("waitaof", (0,))[-1]) / 1000
    settings: dict[str, Any] = {"socket_timeout": patience, "socket_connect_timeout": _PATIENCE}
    for name, _ in address.query:
        settings.pop(name, None)
    rest = address.without(_OURS)

    def connect() -> Redis | RedisCluster:
        if cluster:
            # By default, redis-py cuts all connections at every fifth moved slot, even those in use.
            return RedisCluster.from_url(rest, reinitialize_steps=0, **settings)
        # Try once more on a new connection, because the server may have closed an idle one. Longer retrying is the caller's.
        retry = Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))
        return Redis.from_pool(ConnectionPool.from_url(rest, retry=retry, **settings))

    return connect, options


def _check_path(parsed: StoreURL, *, cluster: bool) -> None:
    if parsed.scheme == "unix":
        if cluster:
            raise StoreError(f"{parsed}: a cluster is reached over TCP, so cluster=true needs redis: or rediss:")
        if not parsed.path:
            raise StoreError(f"{parsed} lacks the socket's path; write unix:///run/redis.sock?db=0")
        return
    database = parsed.path.strip("/")
    if cluster and database.strip("0"):
        raise StoreError(f"{parsed}: a cluster has no database {database}; leave it out, and use prefix= to keep runs apart")
    if database and not database.isdecimal():
        raise StoreError(f"database {database!r} in {parsed} is not a number; write redis://host:6379/0?prefix={database}")
