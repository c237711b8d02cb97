"""Webhooks behind a real server, on stores that replicas share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from durable_core import MemoryStore, Runner, Store, flow, open_store
from durable_core.control import result, runs
from durable_worker import Worker, github
from tests.servers.postgres import postgres_server_url, postgres_url
from tests.servers.redis import redis_server_url, redis_url
from tests.worker.deliveries import SECRET, by_github

__all__ = ["postgres_server_url", "postgres_url", "redis_server_url", "redis_url"]

BODY = b'{"after": "6dcb09b"}'


@flow
async def on_push(runner: Runner, payload: dict[str, Any]) -> str:
    return str(payload["after"])


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A clean place that replicas share."""
    if request.param == "sqlite":
        return f"sqlite:{(tmp_path / 'runs.db').as_posix()}"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


def replica(store: Store) -> Worker:
    worker = Worker(store, [on_push])
    worker.webhook("/github", on_push, verify=github(SECRET))
    return worker


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve on a port that the system chooses; yield a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            async with asyncio.timeout(30):
                while not server.started:
                    await asyncio.sleep(0.01)
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


async def test_a_delivery_sent_fifty_times_at_once_to_two_replicas_is_one_run(url: str) -> None:
    """Each is answered with the same run, before and after it has ended."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(url)) for _ in range(2)]
        clients = [await stack.enter_async_context(served(replica(store).app)) for store in stores]

        async def deliver(number: int) -> tuple[int, str]:
            answer = await clients[number % 2].post("/github", content=BODY, headers=by_github(BODY, "delivery-1"))
            return answer.status_code, answer.json()["run_id"]

        run_id = "github:delivery-1"
        assert {*await asyncio.gather(*map(deliver, range(50)))} == {(202, run_id)}
        entries = await stores[0].list(run_id)
        assert [(entry.step_id, entry.status) for entry in entries] == [("$flow", "waiting")]
        assert [run.run_id async for run in runs(stores[1])] == [run_id]

        ended, *answers = await asyncio.gather(on_push.run(stores[1], run_id), *map(deliver, range(50)))
        assert ended == "6dcb09b"
        assert {*answers} <= {(200, run_id), (202, run_id)}
        assert await deliver(0) == await deliver(1) == (200, run_id)


async def test_a_delivery_is_worked_off_by_replicas_that_work(url: str) -> None:
    """Nobody calls `run`: the workers of both replicas poll, one of them takes the run, and either tells its result."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(url)) for _ in range(2)]
        workers = [await stack.enter_async_context(replica(store)) for store in stores]
        clients = [await stack.enter_async_context(served(worker.app)) for worker in workers]
        async with asyncio.timeout(60):
            for client in clients:
                while (health := await client.get("/healthz")).status_code != 200:
                    await asyncio.sleep(0.01)
                assert health.json() == {"working": True}
        answer = await clients[0].post("/github", content=BODY, headers=by_github(BODY, "1"))
        assert answer.status_code == 202
        assert await result(stores[1], answer.json()["run_id"], timeout=60) == "6dcb09b"
        for client in clients:
            again = await client.post("/github", content=BODY, headers=by_github(BODY, "1"))
            expected = {"run_id": "github:1", "status": "succeeded", "result": "6dcb09b"}
            assert (again.status_code, again.json()) == (200, expected)


async def test_any_json_reaches_a_real_store(url: str) -> None:
    """Text that a database could stumble over comes back as it was sent."""
    payload = {"after": "\x00 ' \" \\ é 🐘 \u2028", "": [None, True, 1.5, 2**63, -(2**63)], "$": {}}
    async with open_store(url) as store, served(replica(store).app) as client:
        body = httpx.Request("POST", "http://hooks", json=payload).content
        headers = {name: value.encode("latin-1") for name, value in by_github(body, "é" * 20).items()}
        answer = await client.post("/github", content=body, headers=headers)
        assert answer.status_code == 202
        assert await on_push.run(store, answer.json()["run_id"]) == payload["after"]


async def test_a_server_passes_on_what_was_sent() -> None:
    """Headers, several chunks and a body that is too large, over a real connection."""
    async with served(replica(MemoryStore()).app) as client:

        async def chunks() -> AsyncIterator[bytes]:
            for byte in BODY:
                yield bytes([byte])

        signed = by_github(BODY)
        assert (await client.post("/github", content=chunks(), headers=signed)).status_code == 202
        assert (await client.post("/github", content=BODY + b" ", headers=signed)).status_code == 401
        doubled = [*signed.items(), ("x-hub-signature-256", signed["x-hub-signature-256"])]
        assert (await client.post("/github", content=BODY, headers=doubled)).status_code == 401
        assert (await client.post("/github", content=b" " * (2**20 + 1), headers=signed)).status_code == 413
        assert (await client.get("/github")).status_code == 405
        assert (await client.post("/gitlab", content=BODY, headers=signed)).status_code == 404
        assert (await client.get("/healthz")).status_code == 503


@pytest.mark.parametrize("lie", [b"Content-Length: 5\r\n", b"Content-Length: -5\r\n", b"Content-Length: x\r\n", b""])
async def test_a_length_that_is_a_lie_starts_nothing(lie: bytes) -> None:
    """Whether the server or the webhook sees through it."""
    worker = replica(MemoryStore())
    async with served(worker.app) as client:
        headers = "".join(f"{name}: {value}\r\n" for name, value in by_github(BODY).items()).encode()
        port = client.base_url.port
        assert port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /github HTTP/1.1\r\nHost: hooks\r\nConnection: close\r\n" + headers + lie + b"\r\n" + BODY)
        writer.write_eof()
        line = await reader.readline()
        assert line.split()[1] in (b"400", b"401")
        writer.close()
    assert [run async for run in runs(worker.store)] == []


def in_starlette(app: Any) -> Any:
    return Starlette(routes=[Mount("/hooks", app)])


def in_fastapi(app: Any) -> Any:
    api = FastAPI()
    api.mount("/hooks", app)
    return api


@pytest.mark.parametrize("mount", [in_starlette, in_fastapi])
async def test_the_application_can_be_mounted_under_a_prefix(mount: Callable[[Any], Any]) -> None:
    """Run ids are made of the webhook's own path, wherever it is mounted; answers are the same."""
    async with served(mount(replica(MemoryStore()).app)) as client:
        answer = await client.post("/hooks/github", content=BODY, headers=by_github(BODY, "1"))
        assert (answer.status_code, answer.json()) == (202, {"run_id": "github:1"})
        assert (await client.post("/hooks/github", content=BODY)).json() == {"error": "the delivery can't be verified"}
        assert (await client.post("/hooks/other", content=BODY)).json() == {"error": "Not Found"}
        assert (await client.put("/hooks/github", content=BODY)).status_code == 405
        assert (await client.get("/hooks/healthz")).json() == {"working": False}
        assert (await client.post("/github", content=BODY, headers=by_github(BODY, "1"))).status_code == 404
