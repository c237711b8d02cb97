"""Notifications about runs: LISTEN on one connection, for all watches of a store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from contextvars import Context
from typing import Any, Final
from uuid import uuid4

from asyncpg import Connection

from durable_core import StoreError

from ._connections import Connections, is_open
from .errors import ConnectionLost

_AGAIN: Final = 0.5  # seconds until the next try to listen, after one that failed
_log: Final = logging.getLogger("durable_postgres")


class Watches:
    """The watched runs, and a task that keeps one connection listening while there are any.

    Each message is the id of a run. A pooler may accept LISTEN and then deliver nothing. So before the first watch yields, a
    token that we send on another connection must arrive.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._channel: Final = connections.table.channel
        self._limits: Final = connections.limits
        self._own: Final = connections.own(self._begin)
        self._watched: Final[dict[str, set[asyncio.Event]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._token = ""  # contains a line feed, which run ids can't
        self._listens = False
        """True once the token has arrived on the present connection."""
        self._has_listened = False
        self._is_over = False
        """True once no more notifications will come."""
        self._changed = asyncio.Event()
        """Set when the connection is lost, or the token arrives."""

    async def watch(self, run_id: str) -> AsyncGenerator[None]:
        """Yield when listening begins, after each reconnection, and whenever somebody acts on the run."""
        told = asyncio.Event()
        if self._listens or self._is_over:
            told.set()
        self._watched.setdefault(run_id, set()).add(told)
        if not self._is_over and (self._listener is None or self._listener.done()):
            # In an empty context: the caller's would keep its run in memory for as long as anybody watches.
            self._listener = asyncio.create_task(self._listen(), name="durable-postgres-watch", context=Context())
        try:
            while await told.wait() and not self._is_over:
                told.clear()
                yield
        finally:
            self._watched[run_id].remove(told)
            if not self._watched[run_id]:
                del self._watched[run_id]

    def close(self) -> None:
        """End all watches. The store closes the connection together with its others."""
        self._end()
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        """Keep a connection listening, and check it from time to time."""
        while self._watched and not self._is_over:
            try:
                await self._connections.ready()
                if not self._connections.can_spare_one:
                    self._end()
                    break
                async with self._own.use() as connection:
                    if self._listens:
                        await connection.execute("select 1", timeout=self._limits.statement)
                    else:
                        await self._probe(connection)
            except StoreError as error:
                self._listens = False
                _log.debug("%s: watches hear nothing for now: %s", self._connections, error)
                await asyncio.sleep(_AGAIN)
            else:
                await self._change(self._limits.ping)
        self._listens = False
        self._own.close()

    async def _begin(self, connection: Connection) -> None:
        self._listens, self._changed = False, (changed := asyncio.Event())
        connection.add_termination_listener(lambda _: changed.set())
        listening = connection.add_listener(self._channel, self._hear)
        await self._connections.timed(connection, listening, within=self._limits.statement)

    async def _probe(self, connection: Connection) -> None:
        """Send a token and wait for it. Then notify all watches, because they may have missed something before."""
        self._token = f"\n{uuid4().hex}"
        await self._connections.fetch("select pg_notify($1, $2)", self._channel, self._token, within=self._limits.statement)
        # Ask nothing on this connection meanwhile: some poolers deliver messages only along with an answer.
        await self._change(self._limits.probe)
        if self._listens:
            self._tell_all()
        elif self._has_listened or not is_open(connection):
            raise ConnectionLost(f"{self._connections}: the listening connection receives nothing")
        else:
            _log.info("%s: a message to itself did not come, so nothing is watched; is a pooler in between?", self._connections)
            self._end()
            # Otherwise the pooler would keep getting messages for nobody.
            silence = connection.remove_listener(self._channel, self._hear)
            await self._connections.timed(connection, silence, within=self._limits.statement)

    def _hear(self, connection: Any, pid: int, channel: str, message: Any) -> None:
        if message == self._token:
            self._listens = self._has_listened = True
            self._changed.set()
        for told in self._watched.get(message, ()):
            told.set()

    async def _change(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    def _end(self) -> None:
        self._is_over, self._listens = True, False
        self._tell_all()

    def _tell_all(self) -> None:
        for events in self._watched.values():
            for told in events:
                told.set()
