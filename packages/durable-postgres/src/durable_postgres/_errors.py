"""Turns the driver's errors into the store's, which say what to do."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import asyncpg

from durable_core import StoreError

from .errors import ConnectionLost, RowRefused, TransactionConflict

T = TypeVar("T")

AWAY: Final = "is the server up? check host and port in the URL, PGHOST or PGPORT"
_CONFLICTS: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
# After a failover, a connection may reach a read-only server, and the next one the new primary.
_READ_ONLY: Final = asyncpg.ReadOnlySQLTransactionError
_ENDED: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
# The server refuses a single row with these. The rest of its batch is sent again without it.
_REFUSED: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.RaiseError,
)
# The first line that matches gives the class of the error and the advice. TargetServerAttributeNotMatched counts as a lost
# connection because a standby may be promoted, InternalClientError because the protocol may be out of step when a server ends.
_MEANINGS: Final[tuple[tuple[Any, type[StoreError], str], ...]] = (
    (_CONFLICTS, TransactionConflict, ""),
    (_READ_ONLY, ConnectionLost, "if you made the pool, give asyncpg.create_pool target_session_attrs='read-write'"),
    ((*_ENDED, asyncpg.TargetServerAttributeNotMatched, asyncpg.InternalClientError), ConnectionLost, ""),
    (TimeoutError, StoreError, "the server did not answer in time; it may have done the work or not"),
    (OSError, ConnectionLost, AWAY),
    (_REFUSED, RowRefused, ""),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        StoreError,
        "check user and password in the URL, PGUSER, PGPASSWORD or ~/.pgpass, and that the server's pg_hba.conf allows the user",
    ),
    (asyncpg.InvalidCatalogNameError, StoreError, "create the database first: the store creates only its schema and table"),
    (
        asyncpg.InsufficientPrivilegeError,
        StoreError,
        "the store needs USAGE on its schema, SELECT, INSERT and DELETE on its table and those of its locks, flows and wake-ups,"
        " UPDATE on these three, and CREATE if they don't exist: grant these rights, or apply the SQL that"
        " durable_postgres.schema_sql() returns as another role",
    ),
    (
        (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError),
        StoreError,
        "a pooler gives each transaction another connection: add statement_cache_size=0 to the URL, or to asyncpg.create_pool if"
        " you made the pool",
    ),
)
# asyncpg's words for a connection that is gone, or still busy with abandoned work.
_UNUSABLE: Final = re.compile("closed|released|operation is (in progress|cancelling)")
_MAX_CONFLICTS: Final = 10


@contextmanager
def driver_errors(target: object) -> Iterator[None]:
    """Turn an error of the driver into a `StoreError` that names `target`."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise _store_error(error, target) from error


def is_retryable(error: BaseException | None) -> bool:
    """Return True if `error`, or an error that caused it, means that the transaction may run again."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:  # `raise error from error` makes a circle
        chain.append(error)
        error = error.__cause__
    return any(isinstance(each, (ConnectionLost, TransactionConflict, *_CONFLICTS, _READ_ONLY, *_ENDED)) for each in chain)


async def retry(work: Callable[[], Awaitable[T]]) -> T:
    """Do `work`. Repeat it once after a lost connection, and up to nine times after a conflict with another transaction.

    Only for work that may be done twice. Only this notices that a firewall dropped an idle connection.
    """
    lost, conflicts = False, 0
    while True:
        try:
            return await work()
        except ConnectionLost:
            if lost:
                raise
            lost = True
        except TransactionConflict:
            conflicts += 1
            if conflicts == _MAX_CONFLICTS:
                raise
            await asyncio.sleep(random.uniform(0, 0.002 * 2**conflicts))


def _store_error(error: Exception, target: object) -> StoreError:
    said = f"{target}: {str(error) or type(error).__name__}"
    for kinds, class_, advice in _MEANINGS:
        if isinstance(error, kinds):
            is_up = advice == AWAY and "SSL" in said
            return class_(f"{said}; {advice}" if advice and not is_up else said)
    is_unusable = isinstance(error, asyncpg.InterfaceError) and _UNUSABLE.search(str(error))
    return (ConnectionLost if is_unusable else StoreError)(said)
