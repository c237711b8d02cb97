"""The connection that appends keep out of the pool."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError

from durable_core.store import to_the_end

_CLOSED: Final = "the store was closed"


class HeldConnection:
    """Sends commands on one connection of a pool: to take, check and give back one for each is a third of a call.

    Only for commands that may run twice, and for one caller at a time.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Final[Any] = pool  # which lacks types
        self._connection: Any = None
        self._left = False
        self._busy = False
        self.closed = False

    async def execute(self, command: tuple[object, ...]) -> Any:
        """Return the answer as bytes; raise it where it is an error."""
        connection = self._connection or await self._connect()
        self._busy = True
        try:
            return await self._ask(connection, command)
        finally:
            self._busy = False
            if self.closed:
                await to_the_end(self._give_back(connection))

    async def _ask(self, connection: Any, command: tuple[object, ...]) -> Any:
        if self._left:
            self._left = False
            await connection.disconnect()
        try:
            return await _answer(connection, command)
        except ConnectionError:  # the server, or a firewall, closes connections that are idle
            if self.closed:
                raise ConnectionError(_CLOSED) from None
            await connection.disconnect()
            return await _answer(connection, command)

    async def _connect(self) -> Any:
        connection = None if self.closed else await self._pool.get_connection()
        if connection is None:
            raise ConnectionError(_CLOSED)
        if self.closed:
            await self._pool.release(connection)
            raise ConnectionError(_CLOSED)
        self._connection = connection
        return connection

    def leave(self) -> None:
        """Have the next command make another connection."""
        self._left = True

    async def close(self) -> None:
        """Give the connection back; a command in flight, or a later one, fails with a `ConnectionError`."""
        self.closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._busy:  # the command gives it back once it has failed
                await connection.disconnect()
            else:
                await self._give_back(connection)

    async def _give_back(self, connection: Any) -> None:
        await connection.disconnect()
        await self._pool.release(connection)


async def _answer(connection: Any, command: tuple[object, ...]) -> Any:
    # Both connect if needed, and close a connection whose answer was not read.
    await connection.send_command(*command)
    return await connection.read_response(disable_decoding=True)
