"""Boto3's blocking calls never hold up an event loop."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

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
