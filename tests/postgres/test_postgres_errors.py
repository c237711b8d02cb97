"""Bad input: one clear error each, and never a password in it."""

import logging
import socket
import traceback
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import StepRecord, StoreError, open_store
from durable_postgres import ConnectionLost, PostgresStore, RowRefused, schema_sql
from durable_postgres._options import parse_url
from tests.postgres.limits import with_limits
from tests.servers.ports import free_port
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.asyncio

SECRET = "s3cr3t"
AWAY = "; is the server up? check host and port in the URL, PGHOST or PGPORT"


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
    """A server that is down is told from one that refuses, and named."""
    place = f"127.0.0.1:{free_port()}"
    said = await refusal(with_place(postgres_server_url, host=place))
    assert f'PostgreSQL table "durable"."steps" at {place}: ' in said
    assert "Connect call failed" in said
    assert said.endswith(AWAY)


async def test_an_unknown_host(postgres_server_url: str) -> None:
    """A name that can't be resolved is the resolver's error, with the name and what to look at."""
    said = await refusal(with_place(postgres_server_url, host="no-such-host.invalid"))
    assert " at no-such-host.invalid: [Errno " in said
    assert said.endswith(AWAY)


async def test_a_server_without_tls(postgres_server_url: str) -> None:
    """It is up: the advice would lead astray."""
    said = await refusal(f"{postgres_server_url}{'&' if '?' in postgres_server_url else '?'}sslmode=require")
    assert "rejected SSL upgrade" in said
    assert "is the server up" not in said


async def test_a_server_that_does_not_answer() -> None:
    """Something that takes the connection and says nothing is a server that is away: it was asked for no work."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        async with with_limits(connect=0.2).from_url(f"postgresql://ann:{SECRET}@{place}/app?sslmode=disable") as store:
            with pytest.raises(StoreError) as refused:
                await store.list("run")
    assert str(refused.value).endswith(
        f" at {place}: the server did not answer in time; is the server up? check host and port in the URL, PGHOST or PGPORT"
    )


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (f"postgresql://ann:{SECRET}@db.internal/app", "db.internal"),
        (f"postgresql://ann:{SECRET}@db.internal:6432/app?schema=x&application_name=y", "db.internal:6432"),
        (f"postgresql://ann:pa@{SECRET}@db.internal/app", "db.internal"),
        ("postgresql://[::1]:6432/app", "[::1]:6432"),
        ("postgresql://a:1,b:2/app", "a:1,b:2"),
        ("postgresql://%2Fvar%2Frun/app", "/var/run"),
        (f"postgresql:///app?host=db.internal&password={SECRET}", "db.internal"),
        ("postgresql:///?host=/run/postgresql&dbname=app", "/run/postgresql"),
        ("postgresql://ann@/app?host=db.internal", "db.internal"),
        ("postgresql:///app", "the default host"),
    ],
)
async def test_the_host_that_errors_name(url: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors name the host, as the URL gives it, and nothing else of the URL; or else the one that the environment gives."""
    monkeypatch.delenv("PGHOST", raising=False)
    assert parse_url(url)[2] == host
    monkeypatch.setenv("PGHOST", "pg.internal")
    assert parse_url(url)[2] == ("pg.internal" if host == "the default host" else host)


async def test_errors_are_of_public_classes(postgres_server_url: str, postgres_url: str) -> None:
    """The names that a traceback shows can be imported: of a server that is away, and of a row that is refused."""
    async with open_store(with_place(postgres_server_url, host=f"127.0.0.1:{free_port()}")) as store:
        with pytest.raises(ConnectionLost) as lost:
            await store.list("run")
    async with open_store(postgres_url) as store:
        with pytest.raises(RowRefused) as refused:
            await store.append(StepRecord(run_id="run", step_id="step", revision=2**63))
    for error in (lost.value, refused.value):
        shown = traceback.format_exception_only(error)[0]
        assert shown.startswith(f"durable_postgres.errors.{type(error).__name__}: ")
        assert isinstance(error, StoreError)


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


async def test_an_unknown_role(postgres_server: PostgresServer) -> None:
    """A user that the server doesn't know, or doesn't let in, is told with where it may come from."""
    url = postgres_server.url.replace("//postgres@", f"//nouser:{SECRET}@")
    advice = (
        "; check user and password in the URL, PGUSER, PGPASSWORD or ~/.pgpass, and that the server's pg_hba.conf allows the user"
    )
    assert f'role "nouser" does not exist{advice}' in await refusal(url)
    rules = postgres_server.folder / "data" / "pg_hba.conf"
    rules.write_text("host all postgres 127.0.0.1/32 trust\n")
    postgres_server.psql("select pg_reload_conf()")
    assert (await refusal(url)).endswith(advice)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("schema=x; drop", "schema and table cannot be .*: expected up to 57 letters"),
        ("table=a.b", "schema and table cannot be .*: expected up to 57 letters"),
        (f"table={'a' * 58}", "schema and table cannot be .*: expected up to 57 letters"),
        ("schema=", "schema and table cannot be .*: expected up to 57 letters"),
        ("shema=x", r"unknown option 'shema' .* Did you mean 'schema'\?"),
        ("pool_max=4", r"option 'pool_max' .* at least 5"),
        ("pool_max=many", r"option 'pool_max' .* expected a whole number"),
        ("schema=a&schema=b", r"option 'schema' is given twice"),
        ("statement_cache_size=-1", r"option 'statement_cache_size' .* expected a whole number"),
    ],
)
async def test_bad_options(query: str, expected: str) -> None:
    """An option is refused when the store is made, with what was expected."""
    with pytest.raises(StoreError, match=expected) as refused:
        open_store(f"postgresql://ann:{SECRET}@localhost/app?{query}")
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql:/app:{SECRET}@db/prod",
        f"postgres:/app:{SECRET}@db/prod",
        f"postgresql:app:{SECRET}@db/prod",
        "postgresql:",
        f"postgresql:?password={SECRET}",
    ],
)
async def test_a_url_without_two_slashes(url: str) -> None:
    """It names no server, so nothing is connected to; what stands in it is not shown."""
    with pytest.raises(StoreError, match="write .*://host with two slashes") as refused:
        PostgresStore.from_url(url)
    assert SECRET not in "".join(traceback.format_exception_only(refused.value))
    assert "prod" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [f"postgresql://ann:{SECRET}@a b:x/app", f"postgresql://ann:{SECRET}/x@[db/app", f"postgresql://ann:pa@ss/{SECRET}@db/app"],
)
async def test_a_host_that_cannot_be_read(url: str) -> None:
    """The error shows the scheme and what is expected, and nothing else of the URL."""
    with pytest.raises(StoreError) as refused:
        PostgresStore.from_url(url)
    assert SECRET not in "".join(traceback.format_exception(refused.value)).replace("SECRET", "")


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
        with pytest.raises(StoreError, match="max_size is 4; the store needs at least 5 connections"):
            await store.list("run")


async def test_bad_names() -> None:
    """Names are checked wherever they come in."""
    with pytest.raises(StoreError, match="schema and table cannot be 'x; drop': expected up to 57 letters"):
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
