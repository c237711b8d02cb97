"""The connection that appends keep out of the pool."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError


class HeldConnection:
    """Sends commands without a pool's work for each: taking a connection, checking it and giving it back is a third of a call.

    Only for commands that may be done twice, and for one caller at a time.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Final[Any] = pool  # which lacks types
        self._connection: Any = None
        self._left = False

    async def execute(self, command: tuple[object, ...]) -> Any:
        """Return the answer as bytes; raise it where it is an error."""
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        if self._left:
            self._left = False
            await self._connection.disconnect()
        try:
            return await self._ask(command)
        except ConnectionError:  # the server, or a firewall, closes connections that are idle
            await self._connection.disconnect()
            return await self._ask(command)

    async def _ask(self, command: tuple[object, ...]) -> Any:
        # Both connect where they must, and leave no connection behind whose answer was not read.
        await self._connection.send_command(*command)
        return await self._connection.read_response(disable_decoding=True)

    def leave(self) -> None:
        """Have the next command make another connection."""
        self._left = True

    async def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._pool.release(connection)
