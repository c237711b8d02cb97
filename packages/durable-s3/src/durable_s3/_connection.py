"""A boto3 client and the threads that its blocking calls run on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # it ships no types

from durable_core.errors import StoreError

from . import _faults

T = TypeVar("T")

LEASE_THREADS: Final = 4


class Connection:
    """Runs requests on threads of its own, one for each connection. The first request opens it.

    The loops of the store and of its leases use it at the same time. `owned` says that `connect` makes the client. Then this
    closes it, makes another once its credentials have expired, and never shares it with a forked child.

    Once `is_closed` is set, as `close` does, requests raise `StoreError`.
    """

    def __init__(self, connect: Callable[[], Any], *, threads: int, owned: bool) -> None:
        self._connect: Final = connect
        self._owned: Final = owned
        self.is_closed = False
        self.width: Final = threads
        self._opening = threading.Lock()  # held while a client is made, which may ask the network for credentials
        self._starting = threading.Lock()  # never held for long: event loops take it
        self._client: Any = None
        self._threads: dict[bool, ThreadPoolExecutor] = {}
        self._pid = os.getpid()

    async def request(self, work: Callable[[Any], T], *, for_lease: bool = False) -> T:
        """Call `work` with the client on one of the threads. Requests of leases have threads of their own."""
        return await self.run(self._answer, work, for_lease=for_lease)

    async def run(self, work: Callable[..., T], *arguments: Any, for_lease: bool = False) -> T:
        """Do other blocking work on one of the threads. Raises `StoreError` if `close` comes before it has begun."""
        if self._pid != os.getpid():
            self._pid, self._opening, self._starting = os.getpid(), threading.Lock(), threading.Lock()
            self._threads, self._client = {}, None
        with self._starting:
            if self.is_closed:  # a call of several requests must not open it again
                raise StoreError("the store was closed before it sent this request")
            if for_lease not in self._threads:
                width = LEASE_THREADS if for_lease else self.width
                self._threads[for_lease] = ThreadPoolExecutor(width, thread_name_prefix="durable-s3")
            future = self._threads[for_lease].submit(work, *arguments)
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if task is None or task.cancelling() > cancellations:
                raise
            raise StoreError("the store was closed before it sent this request") from None

    @property
    def address(self) -> str:
        """The endpoint of the requests, known after the first."""
        return "S3" if self._client is None else str(self._client.meta.endpoint_url)

    async def open(self) -> None:
        """Make the client without sending a request."""
        await self.request(lambda client: None)

    async def close(self) -> None:
        """Wait for requests in flight, end the threads and close the client. Requests that wait for a thread are given up."""
        with self._starting:
            self.is_closed = True
            threads, self._threads = self._threads, {}
        for each in threads.values():
            await asyncio.to_thread(each.shutdown, cancel_futures=True)
        client, self._client = self._client, None
        if client is not None and self._owned:
            client.close()

    def _answer(self, work: Callable[[Any], T]) -> T:
        with self._opening:
            client = self._client
            if client is None:
                client = self._client = self._connect()
        try:
            return work(client)
        except ClientError as error:
            if self._owned and _faults.expired(error):
                with self._opening:
                    if self._client is client:
                        self._client = None  # the next client reads profile and environment again
            raise
