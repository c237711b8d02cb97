"""The logs in `data/`, put where each store finds them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
import redis

from durable_core import Runner, Store, open_store
from durable_core.testing import FakeClock
from tests.old_logs.runs import BODIES, FLOWS, World, order_flow
from tests.servers.postgres import postgres_server_url
from tests.servers.redis import redis_server_url
from tests.servers.s3 import S3Server, ministack_server, s3_credentials

__all__ = ["ministack_server", "postgres_server_url", "redis_server_url", "s3_credentials"]

DATA = Path(__file__).parent / "data"
STORES = ["file", "file-shared", "sqlite", "postgres", "redis", "s3"]
Load = Callable[[], str]


def text_of(name: str) -> str:
    return (DATA / name).read_bytes().decode()


def load_files(request: pytest.FixtureRequest) -> str:
    folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("old")
    if request.param == "file-shared":
        return f"file:{shutil.copy(DATA / 'file-shared.jsonl', folder)}"
    return f"file:{shutil.copytree(DATA / 'file', folder / 'runs')}"


def load_sqlite(request: pytest.FixtureRequest) -> str:
    path = request.getfixturevalue("tmp_path_factory").mktemp("old") / "runs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(text_of("sqlite.sql"))
    return f"sqlite:{path}"


def load_postgres(request: pytest.FixtureRequest) -> str:
    server: str = request.getfixturevalue("postgres_server_url")
    schema = f"t_{uuid4().hex}"

    async def load() -> None:
        connection = await asyncpg.connect(server)
        try:
            await connection.execute(text_of("postgres.sql").replace('"old_logs"', f'"{schema}"'))
        finally:
            await connection.close()

    asyncio.run(load())
    return f"{server}{'&' if '?' in server else '?'}schema={schema}"


def load_redis(request: pytest.FixtureRequest) -> str:
    server: str = request.getfixturevalue("redis_server_url")
    prefix = f"t-{uuid4().hex}"
    with redis.Redis.from_url(server) as client:
        for key, fields in json.loads(text_of("redis.json")).items():
            client.hset(f"{prefix}:{key}", mapping=fields)
    return f"{server}{'&' if '?' in server else '?'}prefix={prefix}"


def load_s3(request: pytest.FixtureRequest) -> str:
    server: S3Server = request.getfixturevalue("ministack_server")
    bucket = f"t-{uuid4().hex[:12]}"
    server.make_bucket(bucket)
    client = server.client()
    objects: dict[str, str] = json.loads(text_of("s3.json"))
    for key, body in objects.items():
        client.put_object(Bucket=bucket, Key=f"logs/{key}", Body=body.encode())
    line_of = msgspec.json.Decoder(tuple[str, str, msgspec.Raw]).decode
    for line in objects["snapshots/long.jsonl"].split("\n")[1:-1]:
        name, _, entry = line_of(line)
        client.put_object(Bucket=bucket, Key=f"logs/runs/long/{name}", Body=bytes(entry))
    client.close()
    return server.url("logs", bucket)


LOADERS = {
    "file": load_files,
    "file-shared": load_files,
    "sqlite": load_sqlite,
    "postgres": load_postgres,
    "redis": load_redis,
    "s3": load_s3,
}


@pytest.fixture(params=STORES, scope="module")
def untouched_url(request: pytest.FixtureRequest, s3_credentials: None) -> str:
    """The old logs as they were left, for tests that only read them."""
    return LOADERS[request.param](request)


@pytest.fixture(params=STORES)
def own_url(request: pytest.FixtureRequest, s3_credentials: None) -> str:
    """The old logs for one test alone."""
    return LOADERS[request.param](request)


@pytest.fixture(params=STORES, scope="module")
def shared_url(request: pytest.FixtureRequest, s3_credentials: None) -> str:
    """The old logs, each of which one test goes on with."""
    return LOADERS[request.param](request)


class Old:
    """The old runs of one store, on a later day."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = FakeClock(datetime(2026, 1, 1, 12, tzinfo=UTC))  # half a day after the runs began
        self.world = World(self.clock)

    async def resume(self, run_id: str) -> Any:
        """Run the same code again; arguments that are not those recorded are an error."""
        if run_id in FLOWS:
            return await order_flow(self.world).run(self.store, run_id, **FLOWS[run_id])
        async with Runner(self.store, run_id, clock=self.clock, wait_limit=0, on_drift="raise") as runner:
            return await BODIES[run_id](runner, self.world)


@pytest.fixture
async def untouched(untouched_url: str) -> AsyncIterator[Old]:
    async with open_store(untouched_url) as store:
        yield Old(store)


@pytest.fixture
async def own(own_url: str) -> AsyncIterator[Old]:
    async with open_store(own_url) as store:
        yield Old(store)


@pytest.fixture
async def old(shared_url: str) -> AsyncIterator[Old]:
    async with open_store(shared_url) as store:
        yield Old(store)
