"""URLs and clients: what is taken, what is refused, and what is never shown."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from redis.asyncio import Redis, RedisCluster

from durable_core import StepRecord, StoreError, open_store
from durable_redis import RedisStore
from tests.servers.redis import KEEPING, redis_server, tls_front

pytestmark = pytest.mark.asyncio
PAGE = Path(__file__).parents[2] / "docs/stores/redis.md"
RECORD = StepRecord(run_id="run", step_id="step")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://localhost/0?tll=5", r"unknown option 'tll' .*Did you mean 'ttl'"),
        ("redis://localhost/0?decode_responses=true", "unknown option 'decode_responses'"),
        ("redis://localhost/durable", "database 'durable' .*is not a number"),
        ("redis://localhost/0?prefix=a{b}", "prefix 'a{b}' can't begin a key.*without braces"),
        ("redis://localhost/0?prefix=", "prefix '' can't begin a key"),
        ("redis://localhost/0?wait=1", "expected whole numbers: replicas,milliseconds"),
        ("redis://localhost/0?wait=1,0", "both at least 1"),
        ("redis://localhost/0?wait=0,100", "both at least 1"),
        ("redis://localhost/0?waitaof=1,100", "expected whole numbers: local,replicas,milliseconds"),
        ("redis://localhost/0?waitaof=2,0,100", "with local 0 or 1"),
        ("redis://localhost/0?waitaof=0,0,100", "some copy asked for"),
        ("redis://localhost/0?max_connections=0", "at least 1"),
        ("redis://localhost/0?lease=0", "a positive number of seconds"),
        ("redis://localhost/0?cluster=yes", "expected true or false"),
        ("redis://localhost/0?socket_timeout=soon", "not a URL that redis-py accepts"),
        ("redis://localhost/3?cluster=true", "a cluster has no database 3"),
        ("redis:app:secret@cache:6379/0", r"has no server; write redis://host"),
        ("rediss:/:secret@cache:6379/0?ttl=5", r"has no server; write rediss://host"),
        ("redis:cache:6379", r"has no server; write redis://host"),
        ("unix:", "lacks the socket's path"),
        ("unix:///run/redis.sock?cluster=true", "a cluster is reached over TCP"),
    ],
)
async def test_a_url_that_is_refused(url: str, message: str) -> None:
    """What a URL gets wrong is said when the store is made, before anything connects."""
    with pytest.raises(StoreError, match=message):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sec#ret@localhost/0",
        "redis://:sec/ret@localhost/0",
        "redis://me:sec:ret@localhost:x/0",
        "redis://localhost/0?password=secret&x=1",
        "redis:app:secret@cache:6379/0",
        "rediss:/app:secret@cache:6379/0",
        "redis:app:sec/ret@cache:6379/0?x=1",
        "redis:app:sec?ret@cache:6379/0",
    ],
)
async def test_a_password_is_never_shown(url: str) -> None:
    """An error about a URL shows nothing of its password, not even in what caused it."""
    with pytest.raises(StoreError) as caught:
        open_store(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "sec" not in str(error)
        assert "ret" not in str(error)
        error = error.__cause__


async def test_a_wrong_password() -> None:
    """A password that is wrong or missing is one clear error, without the password; the right one works."""
    with redis_server(*KEEPING, password="right") as server:
        for url in (server.url.replace("right", "wrong"), server.url.replace(":right@", "")):
            async with open_store(url) as store:
                for call in (store.append(RECORD), store.list("run")):
                    with pytest.raises(StoreError, match="refused the user name or password") as caught:
                        await call
                    assert "wrong" not in str(caught.value)
        async with open_store(server.url) as store:
            assert await store.append(RECORD) is RECORD


async def test_the_least_rights() -> None:
    """The rights that the documentation lists are enough, and without them the error says what is missing."""
    documented = re.search(r"^ACL SETUSER durable .*$", PAGE.read_text(), re.MULTILINE)
    assert documented
    with redis_server(*KEEPING) as server:
        server.command(*documented[0].split())
        url = f"redis://durable:secret@127.0.0.1:{server.port}/0"
        async with open_store(f"{url}?ttl=60&waitaof=1,0,5000") as store:
            async with store.lock("run") as lease:
                for record in (RECORD, StepRecord(run_id="run", step_id="wait", status="waiting"), RECORD):
                    await store.append(record)
                await store.append(StepRecord(run_id="run", step_id="wait", revision=1))
                assert len(await store.list("run")) == 3
                assert await store.get("run", "step") == RECORD
                assert [run async for run in store.runs()] == ["run"]
                lease.check()
            await store.clear("run")
        async with open_store(f"{url}?prefix=theirs") as store:
            with pytest.raises(StoreError, match="the rights that the store's documentation lists"):
                await store.append(RECORD)


async def test_a_unix_socket(tmp_path: Path) -> None:
    """`unix://` reaches a server on this machine through its socket."""
    path = tmp_path / "redis.sock"
    with redis_server(*KEEPING, "--unixsocket", str(path)):
        async with open_store(f"unix://{path}?db=2&prefix=t") as store:
            assert await store.append(RECORD) is RECORD
            assert await store.get("run", "step") == RECORD


async def test_databases_are_apart() -> None:
    """The path of a URL is the number of the database."""
    with redis_server(*KEEPING) as server:
        zero = server.url
        async with open_store(zero) as store, open_store(zero[:-1] + "5") as other:
            await store.append(RECORD)
            assert await other.get("run", "step") is None


async def test_tls(tmp_path: Path) -> None:
    """`rediss://` speaks TLS, and trusts nobody whom it wasn't told to trust."""
    with redis_server(*KEEPING, password="secret") as server, tls_front(server.port, tmp_path) as (port, authority):
        async with open_store(f"rediss://:secret@localhost:{port}/0?ssl_ca_certs={authority}") as store:
            assert await store.append(RECORD) is RECORD
            await asyncio.gather(*(store.append(StepRecord(run_id="run", step_id=f"{n}")) for n in range(50)))
            assert len(await store.list("run")) == 51
        async with open_store(f"rediss://:secret@localhost:{port}/0") as store:
            with pytest.raises(StoreError, match=r"(?i)certificate"):
                await store.list("run")


async def test_a_ready_client_is_left_open(redis_url: str) -> None:
    """Who opens a client closes it: the store closes its own, and leaves one that it was given."""
    server = redis_url.partition("?")[0]
    async with Redis.from_url(server) as client:
        async with RedisStore(client, prefix="ready") as store:
            await store.append(RECORD)
            await store.clear("run")
        assert await client.ping()
    opened = RedisStore.from_url(redis_url)
    async with opened as store:
        await store.list("run")


async def test_a_cluster_url_makes_a_cluster_client() -> None:
    """`cluster=true` needs one node's address only; nothing connects before the first call."""
    store = RedisStore.from_url("redis://localhost:1/0?cluster=true")
    assert isinstance(store._client, RedisCluster)
    async with store:
        with pytest.raises(StoreError):
            await store.list("run")
