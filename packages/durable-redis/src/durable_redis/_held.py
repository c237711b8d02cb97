"""A connection for appends, kept out of the pool."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError


class HeldConnection:
    """Sends commands on one connection of a pool. Taking and giving back one for each command would take a third of the time.

    Only for commands that may run twice, and for one caller at a time. Close this before the pool.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Final[Any] = pool  # which lacks types
        self._connection: Any = None
        self._closed = False

    async def execute(self, command: tuple[object, ...]) -> Any:
        """Return the answer as bytes. Raise it if it is an error."""
        try:
            try:
                return await self._ask(command)
            except ConnectionError:  # the server or a firewall closed the idle connection
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
        # Both calls connect if needed, and close the connection if its answer was not read.
        await self._connection.send_command(*command)
        return await self._connection.read_response(disable_decoding=True)

    async def leave(self) -> None:
        """Disconnect. The next command makes a new connection, and a command in flight is sent again."""
        if self._connection is not None:
            await self._connection.disconnect()

    async def close(self) -> None:
        """Disconnect for good. Commands in flight and later ones fail with a `ConnectionError`."""
        self._closed = True
        await self.leave()
