"""Bad input: one clear error each, and never a password in it."""

import logging
import traceback
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import StoreError, open_store
from durable_postgres import PostgresStore, schema_sql
from tests.servers.postgres import PostgresServer, free_port

pytestmark = pytest.mark.asyncio

SECRET = "s3cr3t"


async def refusal(url: str) -> str:
    """Open `url`, read from it, and return everything that is shown when that fails."""
    with pytest.raises(StoreError) as refused:
        async with open_store(url) as store:
            await store.list("run")
    assert SECRET not in "".join(traceback.format_exception(refused.value))
    return str(refused.value)


def with_place(url: str, *, host: str | None = None, path: str | None = None) -> str:
    parts = urlsplit(url)
    netloc = f"postgres:{SECRET}@{host or parts.netloc.rpartition('@')[2]}"
    return parts._replace(netloc=netloc, path=parts.path if path is None else path).geturl()


async def test_nobody_listens(postgres_server_url: str) -> None:
    """A server that is down is told from one that refuses."""
    assert "Connect call failed" in await refusal(with_place(postgres_server_url, host=f"127.0.0.1:{free_port()}"))


async def test_an_unknown_host(postgres_server_url: str) -> None:
    """A name that can't be resolved is the resolver's error."""
    assert "PostgreSQL table" in await refusal(with_place(postgres_server_url, host="no-such-host.invalid"))


async def test_a_missing_database(postgres_server_url: str) -> None:
    """The store makes no database, and says so."""
    assert 'database "nope" does not exist; create the database first' in await refusal(
        with_place(postgres_server_url, path="/nope")
    )


async def test_a_wrong_password(postgres_server: PostgresServer) -> None:
    """A refused password is told with where it may come from, and not shown."""
    postgres_server.psql("create role locked login password 'right'")
    rules = postgres_server.folder / "data" / "pg_hba.conf"
    rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    postgres_server.psql("select pg_reload_conf()")
    url = postgres_server.url.replace("//postgres@", f"//locked:{SECRET}@")
    assert 'password authentication failed for user "locked"; check user and password' in await refusal(url)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("schema=x; drop", r"option schema='x; drop' .* expected a name"),
        ("table=a.b", r"option table='a.b' .* expected a name"),
        ("schema=", r"option schema='' .* expected a name"),
        ("shema=x", r"unknown option 'shema' .* Did you mean 'schema'\?"),
        ("pool_max=4", r"option pool_max='4' .* at least 5"),
        ("pool_max=many", r"option pool_max='many' .* expected a whole number"),
        ("schema=a&schema=b", r"option 'schema' is given twice"),
        ("statement_cache_size=-1", r"option statement_cache_size='-1' .* expected a whole number"),
    ],
)
async def test_bad_options(query: str, expected: str) -> None:
    """An option is refused when the store is made, with its value and what was expected."""
    with pytest.raises(StoreError, match=expected) as refused:
        open_store(f"postgresql://ann:{SECRET}@localhost/app?{query}")
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("mark", ["/", "?", "#"])
@pytest.mark.parametrize("beginning", ["pa", "123"])
async def test_a_password_that_is_not_encoded(mark: str, beginning: str) -> None:
    """A password with a character that means something in a URL is not taken for something else, and not shown."""
    with pytest.raises(StoreError, match="percent-encode") as refused:
        open_store(f"postgresql://ann:{beginning}{mark}{SECRET}@localhost/app?schema=x")
    shown = "".join(traceback.format_exception(refused.value))
    assert SECRET not in shown.replace(f'open_store(f"postgresql://ann:{{beginning}}{{mark}}{{{SECRET}}}', "")


async def test_more_connections_at_least_than_at_most(postgres_server_url: str) -> None:
    """A pool can't keep more connections than it may have."""
    assert "pool_min is 7, which is more than pool_max, 5" in await refusal(f"{postgres_server_url}?pool_min=7&pool_max=5")


async def test_a_pool_that_is_too_small(postgres_server_url: str) -> None:
    """A pool whose connections the store would use up is refused at first use."""
    async with asyncpg.create_pool(postgres_server_url, min_size=0, max_size=4) as pool, PostgresStore(pool) as store:
        with pytest.raises(StoreError, match="max_size is 4; the store needs 5 connections at least"):
            await store.list("run")


async def test_bad_names() -> None:
    """Names are checked wherever they come in."""
    with pytest.raises(ValueError, match="schema and table cannot be 'x; drop'"):
        schema_sql("x; drop")


async def test_a_closed_store(postgres_url: str) -> None:
    """A store that was left says so, and works again once it is entered again."""
    store = PostgresStore.from_url(postgres_url)
    async with store:
        assert await store.list("run") == []
    with pytest.raises(StoreError, match="the store is closed; use it inside `async with`"):
        await store.list("run")
    async with store:
        assert await store.list("run") == []


async def test_nothing_shows_the_password(postgres_server_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither `repr` nor the log holds it."""
    caplog.set_level(logging.DEBUG)
    async with open_store(with_place(postgres_server_url)) as store:
        await store.list("run")
        assert SECRET not in repr(store)
    assert SECRET not in caplog.text
