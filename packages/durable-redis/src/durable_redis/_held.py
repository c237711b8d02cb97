"""The connection that appends keep out of the pool."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError


class HeldConnection:
    """Sends commands on one connection of a pool: to take, check and give back one for each is a third of a call.

    Only for commands that may run twice, for one caller at a time, and for a pool that is closed after this.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Final[Any] = pool  # which lacks types
        self._connection: Any = None
        self._closed = False

    async def execute(self, command: tuple[object, ...]) -> Any:
        """Return the answer as bytes; raise it if it is an error."""
        try:
            try:
                return await self._ask(command)
            except ConnectionError:  # the server, or a firewall, closes connections that are idle
                await self.leave()
                return await self._ask(command)
        finally:
            if self._closed:
                await self.leave()

    async def _ask(self, command: tuple[object, ...]) -> Any:
        if self._connection is None and not self._closed:
            self._connection = await self._pool.get_connection()
        if self._closed:
            raise ConnectionError("the store was closed")
        # Both connect if needed, and close a connection whose answer was not read.
        await self._connection.send_command(*command)
        return await self._connection.read_response(disable_decoding=True)

    async def leave(self) -> None:
        """Have the next command make another connection; one in flight is sent again."""
        if self._connection is not None:
            await self._connection.disconnect()

    async def close(self) -> None:
        """Disconnect; a command in flight, or a later one, fails with a `ConnectionError`."""
        self._closed = True
        await self.leave()
