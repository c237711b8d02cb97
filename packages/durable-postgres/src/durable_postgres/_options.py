"""The options in a store's URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from durable_core import StoreError, StoreURL
from durable_core.stores.urls import integer

# Options of asyncpg, and settings of the server that a URL may have.
# fmt: off
_DRIVER: Final = frozenset((
    "database", "dbname", "gsslib", "host", "krbsrvname", "passfile", "password", "port", "service", "ssl_max_protocol_version",
    "ssl_min_protocol_version", "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert",
    "target_session_attrs", "user",
    "application_name", "default_transaction_isolation", "idle_in_transaction_session_timeout", "idle_session_timeout", "jit",
    "lock_timeout", "options", "role", "search_path", "statement_timeout", "synchronous_commit", "tcp_keepalives_count",
    "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_user_timeout", "timezone", "work_mem",
))
# fmt: on
_SESSION: Final = "target_session_attrs"

# The store keeps two connections for appends, one for locks and one for reading. Transactions use the rest.
LEAST_CONNECTIONS: Final = 5


_OURS: Final[Mapping[str, Callable[[str], Any]]] = {
    "schema": str,
    "table": str,
    "pool_min": integer(),
    "pool_max": integer(least=LEAST_CONNECTIONS),
    "statement_cache_size": integer(),
}


def parse_url(url: str) -> tuple[str, dict[str, Any], str]:
    """Split a store's URL into the driver's DSN, our own options, and the host to name in errors."""
    store_url = StoreURL(url)
    store_url.require_server()
    options = store_url.options(_OURS, also=_DRIVER)
    least, most = options.pop("pool_min", 0), options.pop("pool_max", 10)
    if least > most:
        raise StoreError(f"pool_min is {least}, which is more than pool_max, {most}")
    options |= {"min_size": least, "max_size": most}
    given = dict(store_url.query)
    host = unquote(store_url.parts.netloc.rpartition("@")[2]) or given.get("host") or os.environ.get("PGHOST", "")
    if "," in host and not (_SESSION in given or os.environ.get("PGTARGETSESSIONATTRS")):
        options[_SESSION] = "read-write"  # the first host that answers may be a standby
    return store_url.without(_OURS), options, host or "the default host"
