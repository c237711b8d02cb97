"""The page behind a real server, on stores that come and go."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx
import pytest

from durable_core import MemoryStore, StepRecord, Store, open_store
from durable_web import Page, app, serve
from tests.servers.postgres import start_postgres
from tests.servers.redis import KEEPING, redis_server
from tests.servers.s3 import ministack
from tests.web.conftest import Browse, signed_in
from tests.web.flows import ask


@asynccontextmanager
async def served(store: Store, **options: Any) -> AsyncIterator[str]:
    """Serve the page on a free port, and yield the URL to open."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(store, port=0, ready=ready.set_result, **options))
    try:
        await asyncio.wait([ready, serving], return_when=asyncio.FIRST_COMPLETED)
        yield ready.result()
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def test_who_opens_the_link_is_in(memory: MemoryStore) -> None:
    """The link that is given to `ready` works once, over HTTP on the loopback address."""
    await ask(memory)
    async with served(memory) as link, httpx.AsyncClient(follow_redirects=True) as me, httpx.AsyncClient() as other:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/enter\?key=[\w-]+", link)
        assert "payout-1" in (await me.get(link)).text
        assert (await other.get(link)).status_code == 403


async def test_a_forwarded_address_counts_for_nothing(memory: MemoryStore) -> None:
    """Without accounts, no header makes another machine's request one of this machine, nor the other way round."""
    async with served(memory) as link, httpx.AsyncClient() as me:
        for headers in [{"x-forwarded-for": "10.0.0.5"}, {"host": "ops.example.com", "x-forwarded-host": "127.0.0.1"}]:
            answer = await me.get(link.partition("/enter")[0] + "/runs", headers=headers)
            assert answer.status_code == (403 if "host" in headers else 401)


async def test_with_accounts(memory: MemoryStore) -> None:
    """`ready` gets the page's address, and the application says who visits."""
    async with served(memory, user=signed_in) as url, httpx.AsyncClient() as client:
        assert "enter" not in url
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers={"x-user": "alice"})).status_code == 200


async def test_notices_are_given_while_it_is_served(memory: MemoryStore) -> None:
    """The server runs the page's lifespan, and `notify=` is called for what is new."""
    told: asyncio.Queue[StepRecord] = asyncio.Queue()

    async def notify(record: StepRecord) -> None:
        await told.put(record)

    await ask(memory)
    async with served(memory, user=signed_in, notify=notify), asyncio.timeout(30):
        assert (await told.get()).run_id == "payout-1"


async def test_a_port_that_is_taken(memory: MemoryStore) -> None:
    """One clear error, before anything is served."""
    async with served(memory) as link:
        port = int(httpx.URL(link).port or 0)
        with pytest.raises(OSError, match=f"can't serve on 127.0.0.1 port {port}"):
            await serve(memory, port=port)


async def test_a_body_of_100_mb_over_the_wire(memory: MemoryStore) -> None:
    """The server refuses it and goes on serving, and its store is as it was."""
    await ask(memory)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * (1 << 20)

    headers = {"x-user": "alice", "sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"}
    async with served(memory, user=signed_in) as url, httpx.AsyncClient(headers=headers, timeout=60) as client:
        with suppress(httpx.TransportError):  # it may hang up before all was sent
            assert (await client.post(f"{url}/act/cancel", content=body())).status_code == 413
        assert (await client.get(f"{url}/runs")).status_code == 200
    assert (await memory.list("payout-1"))[-1].step_id == "$flow"


async def until(done: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await done():
            await asyncio.sleep(0.05)


SERVERS: dict[str, Callable[[], Any]] = {
    "postgres": contextmanager(start_postgres),
    "redis": lambda: redis_server(*KEEPING),
    "s3": ministack,
}


@pytest.mark.parametrize("kind", SERVERS)
async def test_the_server_of_the_store_goes_away_and_comes_back(kind: str, browse: Browse) -> None:
    """Pages and actions say that the store is away, and what may have been done; once it is back, so are the runs."""
    with SERVERS[kind]() as server:
        async with open_store(server.url("logs") if kind == "s3" else server.url) as store:
            await ask(store)
            page = app(store, user=signed_in)
            alice = browse(page, "alice")
            token = await alice.token()
            assert "payout-1" in (await alice.get()).text
            server.kill()
            patience, page._door.seconds = page._door.seconds, 1.0  # S3's driver tries again for longer than that
            for path in ["", "runs", "run?run=payout-1", "work", "metrics"]:
                shown = await alice.client.get(f"{alice.base}/{path}")
                assert shown.status_code == 503, path
                assert "the store is away" in shown.text or "the store has not answered" in shown.text
                assert shown.headers["retry-after"] == "5"
            answer = await alice.post("act/cancel", run="payout-1", token=token)
            assert (answer.status_code, "done or not" in answer.text) == (503, True)
            server.start()
            page._door.seconds = patience

            async def is_back() -> bool:
                return "payout-1" in (await alice.get()).text

            await until(is_back)
            assert (await alice.post("act/cancel", run="payout-1", token=token)).status_code == 303


async def test_a_store_that_is_slow(page: Page, memory: MemoryStore, browse: Browse) -> None:
    """A page doesn't wait for ever: it says that the store has not answered in time."""
    page._door.seconds = 0.05

    async def hangs(*args: Any, **options: Any) -> Any:
        await asyncio.Event().wait()

    memory.flows = hangs  # type: ignore[method-assign]  # a store that doesn't answer
    shown = await browse(page, "alice").get("runs", state="waiting")
    assert (shown.status_code, "the store has not answered in time" in shown.text) == (503, True)
