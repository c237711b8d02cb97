"""Boto3's blocking calls never hold up an event loop."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from durable_core import StoreError
from durable_s3._connection import Connection

pytestmark = pytest.mark.asyncio


async def test_making_a_client_holds_up_no_loop() -> None:
    """Boto3 may ask the network for credentials then; requests that come meanwhile wait for it, and nothing else does."""
    making, go_on = threading.Event(), threading.Event()

    def connect() -> Any:
        making.set()
        assert go_on.wait(10), "the event loop was held up"
        return SimpleNamespace(close=lambda: None)

    connection = Connection(connect, threads=2, owned=True)
    try:
        first = asyncio.create_task(connection.open())
        await asyncio.to_thread(making.wait)
        second = asyncio.create_task(connection.open())
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, second)
    finally:
        await connection.close()


async def test_a_close_cancels_no_caller() -> None:
    """A request that waits for a thread when the connection closes gets an error: nobody has cancelled its task."""
    working, go_on = threading.Event(), threading.Event()

    def work(client: Any) -> str:
        working.set()
        assert go_on.wait(10)
        return "done"

    connection = Connection(lambda: SimpleNamespace(close=lambda: None), threads=1, owned=True)
    under_way, waiting, cancelled = (asyncio.create_task(connection.request(work)) for _ in range(3))
    await asyncio.to_thread(working.wait)
    closing = asyncio.create_task(connection.close())
    cancelled.cancel()
    with pytest.raises(StoreError, match="the store was closed before it sent this request"):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    go_on.set()
    await closing
    assert await under_way == "done"
