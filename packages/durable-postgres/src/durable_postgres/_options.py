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
_HOST: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:[0-9]*)?")
_SESSION: Final = "target_session_attrs"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

EXPECTED: Final = "expected postgresql://user:password@host:port/database?option=value"

# The store keeps two connections for appends, one for locks and one for reading; transactions take the others.
LEAST_CONNECTIONS: Final = 5


def name(text: str, *, longest: int = 63) -> str:
    """Check the name of a schema or table."""
    if not _NAME.fullmatch(text) or len(text) > longest:
        raise ValueError(f"expected a name of up to {longest} letters, digits and underscores that doesn't begin with a digit")
    return text


def table_name(text: str) -> str:
    """Check the name of a table; the one of its locks is six characters longer."""
    return name(text, longest=57)


_OURS: Final[Mapping[str, Callable[[str], Any]]] = {
    "schema": name,
    "table": table_name,
    "pool_min": integer(),
    "pool_max": integer(least=LEAST_CONNECTIONS),
    "statement_cache_size": integer(),
}


def parse_url(url: str) -> tuple[str, dict[str, Any], str]:
    """Split a store's URL into the driver's DSN, our own options, and the place that errors name."""
    store_url = StoreURL(url)
    store_url.require_server()
    rest = url.partition(store_url.parts.netloc)[2] if store_url.parts.netloc else ""
    hosts = store_url.parts.netloc.rpartition("@")[2].split(",")
    # A `/`, `?` or `#` in a password ends the host too early: the rest of the password must not reach an error message.
    if not all(map(_HOST.fullmatch, hosts)) or "@" in store_url.parts.path or ("@" in rest and "@" not in store_url.parts.netloc):
        raise StoreError(
            f"cannot read the host and port in the {store_url.scheme}:// URL; {EXPECTED}, special characters in user and"
            " password percent-encoded"
        )
    options = store_url.options(_OURS, also=_DRIVER)
    given = dict(store_url.query)
    if (len(hosts) > 1 or "," in given.get("host", "")) and not (_SESSION in given or os.environ.get("PGTARGETSESSIONATTRS")):
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
