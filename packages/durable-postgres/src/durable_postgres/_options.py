"""What a store's URL may say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from durable_core import StoreError, StoreURL
from durable_core.stores.urls import integer

# Options of asyncpg, and settings of the server that people put into URLs.
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
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,56}")

EXPECTED: Final = "expected postgresql://user:password@host:port/database?option=value"

# The store keeps two connections for appends, one for locks and one for reading; transactions take the others.
LEAST_CONNECTIONS: Final = 5


def name(text: str) -> str:
    """Check the name of a schema or table; the name of the table of locks is six characters longer."""
    if not _NAME.fullmatch(text):
        raise ValueError("expected a name of up to 57 letters, digits and underscores that doesn't begin with a digit")
    return text


_OURS: Final[Mapping[str, Callable[[str], Any]]] = {
    "schema": name,
    "table": name,
    "pool_min": integer(),
    "pool_max": integer(least=LEAST_CONNECTIONS),
    "statement_cache_size": integer(),
}


def parse_url(url: str) -> tuple[str, dict[str, Any], str]:
    """Split a store's URL into the driver's DSN, our own options, and the place that errors name."""
    store_url = StoreURL(url)
    store_url.require_server()
    # A `?` in a password ends the host too early: the rest of the password must not reach an error message.
    if "@" in store_url.parts.query and "@" not in store_url.parts.netloc:
        raise StoreError(
            f"the {store_url.scheme}:// URL can't be read; {EXPECTED}, what is special in a password percent-encoded"
        )
    options = store_url.options(_OURS, also=_DRIVER)
    least, most = options.pop("pool_min", 0), options.pop("pool_max", 10)
    if least > most:
        raise StoreError(f"pool_min is {least}, which is more than pool_max, {most}")
    options |= {"min_size": least, "max_size": most}
    given = dict(store_url.query)
    if ("," in store_url.parts.netloc.rpartition("@")[2] or "," in given.get("host", "")) and not (
        _SESSION in given or os.environ.get("PGTARGETSESSIONATTRS")
    ):
        options[_SESSION] = "read-write"  # the first host that answers may be a standby
    return store_url.without(_OURS), options, _place(store_url)


def _place(url: StoreURL) -> str:
    """Return host, port and database as the driver finds them, without user and password."""
    given = dict(url.query)
    hosts = unquote(url.parts.netloc.rpartition("@")[2]) or given.get("host") or os.environ.get("PGHOST", "")
    database = url.path.lstrip("/") or given.get("dbname") or given.get("database") or os.environ.get("PGDATABASE", "")
    if hosts.startswith("/"):
        return f"{database} by the socket in {hosts}".lstrip()
    if hosts and not re.search(r",|:[0-9]*$", hosts):
        hosts += f":{given.get('port') or os.environ.get('PGPORT') or 5432}"
    return "/".join(filter(None, (hosts or "the default host", database)))
