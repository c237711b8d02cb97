"""What the tests of durable-s3 share; a module, so that child processes can import it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import boto3
from botocore.config import Config

from durable_core.clock import SystemClock
from durable_core.record import StepRecord
from durable_s3 import S3Store
from tests.servers.s3 import BUCKET


def entry(step_id: str = "step", revision: int = 0, run_id: str = "run", **fields: Any) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=step_id, revision=revision, **fields)


def client_of(endpoint: str, *, connections: int = 32, read_timeout: float = 10) -> Any:
    config = Config(
        max_pool_connections=connections,
        read_timeout=read_timeout,
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=True,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)


@asynccontextmanager
async def open_at(endpoint: str, prefix: str, *, read_timeout: float = 10, **options: Any) -> AsyncIterator[S3Store]:
    """Open a store around a client of its own."""
    client = client_of(endpoint, read_timeout=read_timeout)
    try:
        async with S3Store(client, BUCKET, prefix, **options) as store:
            yield store
    finally:
        client.close()


@asynccontextmanager
async def open_with_small_pages(url: str, size: int) -> AsyncIterator[S3Store]:
    """Open a store whose LISTs return at most `size` keys a page."""

    def shrink(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = min(size, params.get("MaxKeys", size))

    async with S3Store.from_url(url) as store:
        await store._connection.request(
            lambda client: client.meta.events.register("provide-client-params.s3.ListObjectsV2", shrink)
        )
        yield store


class Requests(Counter[str]):
    """Counts the requests that a client sends, by operation."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        client.meta.events.register("before-send.s3", self._count)

    def _count(self, event_name: str, **_: Any) -> None:
        self[event_name.rpartition(".")[2]] += 1

    def taken(self) -> dict[str, int]:
        """Return the counts since the last time."""
        counts = {
            "put": self["PutObject"],
            "get": self["GetObject"],
            "list": self["ListObjectsV2"],
            "delete": self["DeleteObjects"],
        }
        self.clear()
        return {name: count for name, count in counts.items() if count}


class TestsClock(SystemClock):
    """Stands still until the test moves it; sleepers may be on any thread."""

    __test__ = False

    def __init__(self) -> None:
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._now = 0.0

    def monotonic(self) -> float:  # type: ignore[override]  # a function there, for speed
        return self._now

    async def sleep(self, seconds: float) -> None:
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((self._now + seconds, sleeper))
        await sleeper

    async def pass_by(self, seconds: float) -> None:
        """Let time go by; return once who woke sleeps again."""
        self._now += seconds
        due = [at for at in self.sleepers if at[0] <= self._now]
        count = len(self.sleepers)
        for at in due:
            self.sleepers.remove(at)
            at[1].get_loop().call_soon_threadsafe(at[1].set_result, None)
        while len(self.sleepers) < count:
            await asyncio.sleep(0.001)
