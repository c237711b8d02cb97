"""Processes of their own that work on the same place as a test does."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
from collections.abc import Awaitable, Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self

from durable_core.errors import RunBusy
from durable_core.record import StepRecord
from durable_core.store import lock_of

from ._samples import OpenStore

_SPAWN: Final = multiprocessing.get_context("spawn")
_SECONDS: Final = 60


class Pipe:
    """One end of a pipe between a test and its child; it waits in a thread, so that the event loop goes on renewing leases."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Final = connection

    async def send(self, value: object) -> None:
        await asyncio.to_thread(self._connection.send, value)

    async def receive(self) -> Any:
        def wait() -> Any:
            if not self._connection.poll(_SECONDS):
                raise TimeoutError(f"the other process did not answer within {_SECONDS} s")
            return self._connection.recv()

        return await asyncio.to_thread(wait)

    def close(self) -> None:
        self._connection.close()


class Child(Pipe):
    """Runs `work(pipe, open_store, *args)` in a new interpreter; leaving the context ends it."""

    def __init__(self, work: Callable[..., Awaitable[None]], open_store: OpenStore, *args: object) -> None:
        try:
            pickle.dumps(open_store)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"{open_store!r} can't be sent to another process ({error}): let the fixture `open_store` return a function of a"
                " module or a functools.partial of one, such as functools.partial(durable_core.open_store, url); where the store"
                " lives in one process only, override this test with a method whose docstring gives that reason"
            ) from error
        mine, theirs = _SPAWN.Pipe()
        super().__init__(mine)
        self._theirs = theirs
        self._process: Final = _SPAWN.Process(target=_run, args=(work, theirs, open_store, *args), daemon=True)

    async def receive(self) -> Any:
        try:
            return await super().receive()
        except (EOFError, ConnectionError) as error:
            await asyncio.to_thread(self._process.join, _SECONDS)
            raise AssertionError(
                f"the other process ended with exit code {self._process.exitcode}; its traceback is in what it wrote to stderr"
            ) from error

    async def kill(self) -> None:
        """End the process as SIGKILL does, and wait until it is gone."""
        self._process.kill()
        await asyncio.to_thread(self._process.join, _SECONDS)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._process.start)
        self._theirs.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()
        await asyncio.to_thread(self._process.join, _SECONDS)
        self._process.close()


def _run(work: Callable[..., Awaitable[None]], connection: Connection, open_store: OpenStore, *args: object) -> None:
    async def main() -> None:
        await work(Pipe(connection), open_store, *args)

    asyncio.run(main())


async def append_all(pipe: Pipe, open_store: OpenStore, records: list[StepRecord]) -> None:
    """Append `records` at once when told to; send what came back."""
    async with open_store() as store:
        await store.list(records[0].run_id)  # connect first, so that the race is about the slots
        await pipe.send("ready")
        await pipe.receive()
        await pipe.send(await asyncio.gather(*map(store.append, records)))


async def hold_lock(pipe: Pipe, open_store: OpenStore, run_id: str) -> None:
    """Take the run's lock, say so, and hold it until told to leave it; say "busy" where another holds it."""
    async with open_store() as store:
        locks = lock_of(store)
        assert locks
        with suppress(EOFError):  # the test is over
            try:
                async with locks.lock(run_id):
                    await pipe.send("held")
                    await pipe.receive()
            except RunBusy:
                await pipe.send("busy")
            else:
                await pipe.send("released")
            await pipe.receive()
