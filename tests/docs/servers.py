"""Servers for the pages about stores: the addresses that stand there lead to the tests' own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest

from tests.servers.postgres import postgres_server_url
from tests.servers.redis import KEEPING, redis_server, redis_server_url
from tests.servers.s3 import moto

__all__ = [
    "celery_page",
    "every_server_page",
    "postgres_page",
    "postgres_server_url",
    "redis_page",
    "redis_server_url",
    "s3_page",
]


@pytest.fixture(scope="module")
def postgres_page(postgres_server_url: str) -> Iterator[str]:
    """`DATABASE_URL` names a database of the page's own, and there is a role `app`."""
    name = f"page_{uuid4().hex}"
    asyncio.run(_execute(postgres_server_url, "do $$ begin create role app; exception when duplicate_object then end $$"))
    asyncio.run(_execute(postgres_server_url, f"create database {name}"))
    parts = urlsplit(postgres_server_url)
    yield from _environment(DATABASE_URL=urlunsplit(parts._replace(path=f"/{name}")))


@pytest.fixture(scope="module")
def redis_page(redis_server_url: str) -> Iterator[str]:
    """`REDIS_URL` names a server, and a prefix of the page's own."""
    joint = "&" if "?" in redis_server_url else "?"
    yield from _environment(REDIS_URL=f"{redis_server_url}{joint}prefix=page-{uuid4().hex}")


@pytest.fixture(scope="module")
def s3_page() -> Iterator[str]:
    """`s3://my-bucket` is there, at the endpoint and with the credentials that boto3 finds in the environment."""
    with moto() as server:
        server.make_bucket("my-bucket")
        yield from _environment(
            AWS_ENDPOINT_URL_S3=server.endpoint,
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="us-east-1",
        )


@pytest.fixture(scope="module")
def every_server_page(postgres_page: str, redis_page: str, s3_page: str) -> None:
    """A page that shows several stores has the servers of all."""


@pytest.fixture(scope="module")
def celery_page() -> Iterator[str]:
    """`BROKER_URL` names a broker of the page's own, and what the page writes to a file can be imported by it."""
    with redis_server(*KEEPING) as server, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("")
        yield from _environment(BROKER_URL=server.url)


def _environment(**variables: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield next(iter(variables.values()))


async def _execute(url: str, sql: str) -> None:
    import asyncpg  # as late as the server is started: the tests of other packages do without

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def run_sql(sql: str) -> None:
    """Run what a page shows as SQL in the database that `DATABASE_URL` names."""
    asyncio.run(_execute(os.environ["DATABASE_URL"], sql))
