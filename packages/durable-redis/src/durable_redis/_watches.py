"""Notifications about runs. Each run has a channel, and all watches of a store share one connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

from redis.exceptions import ConnectionError, ResponseError

_PING_SECONDS: Final = 10
_PAUSES: Final = (0.1, 1.0)
"""Seconds before the next connection, if the last one had subscribed and if it hadn't."""
_log: Final = logging.getLogger("durable_redis")


class Watches:
    """The watches of one store. `connect` makes a connection for them; it need not be connected yet."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect: Final = connect
        self._listener: _Listener | None = None

    async def watch(self, channel: str) -> AsyncIterator[None]:
        """Yield when listening begins, when it begins again, and after messages. End if the server can't notify."""
        if self._listener is None or self._listener.is_over:
            self._listener = _Listener(self._connect)
        listener, told = self._listener, asyncio.Event()
        listener.add(channel.encode(), told)
        try:
            while True:
                await told.wait()
                told.clear()
                if listener.is_over:
                    return
                yield
        finally:
            listener.remove(channel.encode(), told)

    async def end(self) -> None:
        """End all watches, and the connection."""
        if self._listener is not None and self._listener.is_here:
            await self._listener.end()


class _Listener:
    """Listens from the first watch until the last has ended."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self.is_over = False
        self._connect: Final = connect
        self._watches: Final[dict[bytes, set[asyncio.Event]]] = {}
        self._heard: Final[set[bytes]] = set()
        """The channels that the server has confirmed."""
        self._changed: Final = asyncio.Event()
        # In an empty context: that of the first watch would keep its run in memory for as long as others watch.
        self._task: Final = asyncio.create_task(self._listen(), name="durable-redis-watches", context=Context())

    @property
    def is_here(self) -> bool:
        """True if it belongs to the running loop."""
        return self._task.get_loop() is asyncio.get_running_loop()

    def add(self, channel: bytes, told: asyncio.Event) -> None:
        if channel in self._heard:
            told.set()
        self._watches.setdefault(channel, set()).add(told)
        self._changed.set()

    def remove(self, channel: bytes, told: asyncio.Event) -> None:
        if watches := self._watches.get(channel):
            watches.discard(told)
            if not watches:
                del self._watches[channel]
                self._changed.set()

    async def end(self) -> None:
        self._finish()
        self._task.cancel()
        await asyncio.wait([self._task])

    def _finish(self) -> None:
        self.is_over = True
        for channel in [*self._watches]:
            self._tell(channel)
        self._watches.clear()

    def _tell(self, channel: bytes) -> None:
        for told in self._watches.get(channel, ()):
            told.set()

    async def _listen(self) -> None:
        try:
            while self._watches:
                self._heard.clear()
                try:
                    await self._converse()
                except ResponseError as error:
                    _log.info("the server can't tell of acts on runs, which are looked for in the log: %s", error)
                    return
                except Exception as error:  # the next connection may work, whatever the error
                    pause = _PAUSES[not self._heard]
                    if self._heard:
                        _log.info("the connection that tells of acts on runs was lost: %s", error)
                    self._heard.clear()
                    await asyncio.sleep(pause)
        finally:
            self._finish()

    async def _converse(self) -> None:
        """Subscribe on one connection to the channels that are watched, while another task reads."""
        connection = await self._connect()
        every = connection.health_check_interval or _PING_SECONDS
        reading: asyncio.Task[None] | None = None
        try:
            await connection.connect()
            reading = asyncio.create_task(self._read(connection, 2 * every))
            reading.add_done_callback(lambda _: self._changed.set())
            asked: set[bytes] = set()
            while self._watches and not reading.done():
                self._changed.clear()
                wanted = {*self._watches}
                self._heard.difference_update(asked - wanted)
                changes = [("SUBSCRIBE", *wanted - asked), ("UNSUBSCRIBE", *asked - wanted)]
                asked = wanted
                for command in [change for change in changes if len(change) > 1] or [("PING",)]:
                    await connection.send_command(*command, check_health=False)
                with suppress(TimeoutError):
                    async with asyncio.timeout(every):
                        await self._changed.wait()
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            await connection.disconnect(nowait=True)
        if not reading.cancelled():
            reading.result()  # raises the error that ended it

    async def _read(self, connection: Any, patience: float) -> None:
        while True:
            reply = await connection.read_response(disable_decoding=True, timeout=patience, push_request=True)
            if reply is None:
                raise ConnectionError(f"nothing came for {patience} s, not even the answer to a PING")
            if isinstance(reply, list) and reply[0] in (b"subscribe", b"message"):
                if reply[0] == b"subscribe":
                    self._heard.add(reply[1])
                self._tell(reply[1])
