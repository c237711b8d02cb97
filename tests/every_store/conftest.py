"""Every store there is, opened anew as another process would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from durable_core import MemoryStore, Store, open_store
from durable_core.testing import FakeClock
from tests.servers.postgres import postgres_server_url, postgres_url
from tests.servers.redis import redis_server_url, redis_url
from tests.servers.s3 import S3Server, ministack_server, s3_credentials

__all__ = [
    "ministack_server",
    "postgres_server_url",
    "postgres_url",
    "redis_server_url",
    "redis_url",
    "s3_credentials",
]

Opened = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture
def s3_url(ministack_server: S3Server, s3_credentials: None) -> str:
    name = f"t-{uuid4().hex[:12]}"
    ministack_server.make_bucket(name)
    return ministack_server.url("logs", name)


@pytest.fixture(params=["file", "sqlite", "postgres", "redis", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A clean place on each store that outlives its process."""
    if request.param == "file":
        return f"file:{tmp_path / 'runs'}"
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'runs.db'}"
    found: str = request.getfixturevalue(f"{request.param}_url")
    if request.param in ("redis", "s3"):  # whose locks are leases: that of a process that was killed ends by itself
        found += f"{'&' if '?' in found else '?'}lease=10"
    return found


@pytest.fixture(params=["memory", "file", "sqlite", "postgres", "redis", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Open the same clean place of each store, each time as a store of its own."""
    if request.param == "memory":
        shared = MemoryStore()

        @asynccontextmanager
        async def memory() -> AsyncIterator[Store]:
            yield shared

        return memory
    local = {"file": f"file:{tmp_path / 'runs'}", "sqlite": f"sqlite:{tmp_path / 'runs.db'}"}
    place = local.get(request.param) or request.getfixturevalue(f"{request.param}_url")
    return lambda: open_store(place)


@pytest.fixture
async def store(opened: Opened) -> AsyncIterator[Store]:
    async with opened() as store:
        yield store


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
