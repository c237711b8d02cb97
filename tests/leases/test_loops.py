"""A store with connections belongs to one event loop at a time."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from durable_core import Runner, StepRecord, StoreError, open_store
from durable_core.store import OpenableStore, lock_of
from durable_redis import RedisStore
from durable_s3 import S3Store
from tests.s3.support import client_of
from tests.servers.s3 import BUCKET, S3Server

# What a loop that was closed over open connections leaves is told by Python when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what is left here, so that no other test is told of it."""
    yield
    gc.collect()


@pytest.fixture(params=["redis", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a store with nothing in it."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return str(request.getfixturevalue("ministack_server").url(uuid4().hex))


async def use(store: OpenableStore, step: str) -> int:
    async with Runner(store, "run") as runner:
        await asyncio.gather(*(runner.step(f"{step} {number}", lambda: 1, returns=int) for number in range(20)))
    return len(await store.list("run"))


def test_a_store_is_used_by_one_loop_after_another(url: str) -> None:
    """A store at module level serves `asyncio.run` twice, and every run of it connects anew."""
    store = open_store(url)
    assert asyncio.run(use(store, "first")) == 20
    assert asyncio.run(use(store, "second")) == 40

    async def close() -> None:
        async with store:
            pass

    asyncio.run(close())


def test_a_closed_store_serves_another_loop(url: str) -> None:
    store = open_store(url)

    async def whole(step: str) -> int:
        async with store:
            return await use(store, step)

    assert asyncio.run(whole("first")) == 20
    assert asyncio.run(whole("second")) == 40


def test_a_second_loop_is_refused_while_the_first_one_runs(url: str) -> None:
    """Every method says so at once, and the first loop goes on."""
    store: Any = open_store(url)

    async def collected(items: Any) -> None:
        async for _ in items:
            pass

    async def held() -> None:
        async with lock_of(store).lock("run"):  # type: ignore[union-attr]  # both have locks
            pass

    calls: list[Callable[[], Any]] = [
        lambda: store.append(StepRecord(run_id="run", step_id="step")),
        lambda: store.get("run", "step"),
        lambda: store.list("run"),
        lambda: store.clear("run"),
        lambda: collected(store.runs()),
        held,
    ]

    def elsewhere(call: Callable[[], Any]) -> None:
        async def main() -> None:
            with pytest.raises(StoreError, match="belongs to another event loop, which is running"):
                await call()

        asyncio.run(asyncio.wait_for(main(), 20))

    async def main() -> None:
        async with store:
            await use(store, "before")
            for call in calls:
                await asyncio.to_thread(elsewhere, call)
            assert await use(store, "after") == 40

    asyncio.run(main())


def test_threads_that_begin_together(url: str) -> None:
    """Of four loops that use a new store at once one goes on, and the others are told."""
    store = open_store(url)
    together = threading.Barrier(4)

    async def main(number: int) -> str:
        together.wait(20)
        try:
            await store.append(StepRecord(run_id="run", step_id=f"{number}"))
        except StoreError as error:
            assert "belongs to another event loop" in str(error)  # noqa: PT017 - the one that goes on raises nothing
            return "refused"
        finally:
            await asyncio.to_thread(together.wait, 20)
        async with store:
            return "served"

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda number: asyncio.run(asyncio.wait_for(main(number), 40)), range(4)))
    assert sorted(answers) == ["refused", "refused", "refused", "served"]


def test_a_given_client_of_redis_belongs_to_its_loop(redis_url: str) -> None:
    """A store can't connect a client anew that it was given: in the next loop it says so."""
    url, _, prefix = redis_url.partition("?prefix=")
    client = Redis.from_url(url)
    store = RedisStore(client, prefix=prefix)
    assert asyncio.run(use(store, "first")) == 20

    async def again() -> None:
        with pytest.raises(StoreError, match="which has ended: give it a client made on this loop"):
            await store.list("run")

    asyncio.run(again())


def test_a_given_client_of_boto3_serves_every_loop(ministack_server: S3Server) -> None:
    """boto3's clients know no loops."""
    client = client_of(ministack_server.endpoint)
    store = S3Store(client, BUCKET, uuid4().hex)
    assert asyncio.run(use(store, "first")) == 20
    assert asyncio.run(use(store, "second")) == 40
    client.close()
