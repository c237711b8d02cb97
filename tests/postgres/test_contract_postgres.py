"""`PostgresStore` keeps the contract of a store, whatever stands between it and the server."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import pytest

from durable_core import Store, open_store
from durable_core.store import watch_of
from durable_core.testing import OpenStore, StoreTests
from tests.servers.pgbouncer import EXECUTABLE, start_pgbouncer

T = TypeVar("T")

WITHOUT_STATEMENTS = "statement_cache_size=0"
SERIALIZABLE = f"default_transaction_isolation={quote('serializable')}"


@pytest.fixture(scope="module")
def pooled_url(postgres_server_url: str) -> Iterator[str]:
    if EXECUTABLE is None or "?" in postgres_server_url:
        yield postgres_server_url
    else:
        with start_pgbouncer(postgres_server_url) as url:
            yield url


class PostgresStoreTests(StoreTests):
    abilities = frozenset({"runs", "scan", "lock", "holder", "polling", "flows", "transaction", "wakeups", "watch"})
    lock_expiry = 1.0  # the server needs a moment to see that a client is gone


class TestPostgresStore(PostgresStoreTests):
    @pytest.fixture
    def open_store(self, postgres_url: str) -> OpenStore:
        return partial(open_store, postgres_url)


class TestPostgresStoreForASerializableRole(PostgresStoreTests):
    @pytest.fixture
    def open_store(self, postgres_url: str) -> OpenStore:
        return partial(open_store, f"{postgres_url}&{SERIALIZABLE}")


class TestPostgresStoreBehindAPooler(PostgresStoreTests):
    """Through PgBouncer in transaction mode where the machine has one; elsewhere with what such a pooler asks for."""

    @pytest.fixture
    def open_store(self, postgres_url: str, pooled_url: str) -> OpenStore:
        joint = "&" if "?" in pooled_url else "?"
        schema = postgres_url.rpartition("schema=")[2]
        return partial(open_store, f"{pooled_url}{joint}schema={schema}&{WITHOUT_STATEMENTS}")

    def ability(self, find: Callable[[Store], T | None], store: Store) -> T:
        if find is watch_of and EXECUTABLE is not None:
            pytest.skip("such a pooler passes no messages on: test_postgres_watches.py tests what a watch does then")
        return super().ability(find, store)
