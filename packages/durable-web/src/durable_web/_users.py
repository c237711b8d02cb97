"""The user of a request and their access, which the application decides on every request."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar, get_args

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

T = TypeVar("T")

Access = Literal["all", "decide", "read"]
"""A user's access: `read` sees everything, `decide` also approves and rejects, `all` also retries, cancels and so on."""
ACCESSES: Final = get_args(Access)


class User(msgspec.Struct, frozen=True):
    """A visitor of the page."""

    name: str
    """The name that is recorded as `by`, and that approvals list in `approvers`."""
    data: Any = None
    """Anything that `access=` needs, such as roles."""
    by_link: bool = False
    """True if the person is known only by a decision link that was made for this name."""


GetUser = Callable[[Request], User | None] | Callable[[Request], Awaitable[User | None]]
GetAccess = Callable[[User], Access | None] | Callable[[User], Awaitable[Access | None]]


class Users:
    """The application's functions `user=` and `access=`."""

    def __init__(self, user: GetUser, access: GetAccess | None) -> None:
        self._user: Final = user
        self._access: Final = access

    async def of(self, request: Request) -> User | None:
        """Return the visitor, or None. Raises `TypeError` if `user=` returns anything else."""
        user: Any = await _ask(self._user, request)
        if user is None:
            return None
        if not isinstance(user, User):
            raise TypeError(f"user= must return a durable_web.User or None, not a {type(user).__name__}")
        if not isinstance(user.name, str) or not user.name or user.name.startswith("$") or not user.name.isprintable():
            raise ValueError(f"user= must return a User whose name is printable and doesn't start with '$', not {user.name!r}")
        return user

    async def access(self, user: User) -> Access | None:
        """Return a user's access. Raises `TypeError` if `access=` returns anything else."""
        if self._access is None:
            return "all"
        access: Any = await _ask(self._access, user)
        if access is not None and access not in ACCESSES:
            raise TypeError(f"access= must return 'all', 'decide', 'read' or None, not {access!r}")
        return access  # type: ignore[no-any-return]  # it was looked at


def may(access: Access, needs: Access) -> bool:
    """Return True if `access` is enough for what needs `needs`."""
    return ACCESSES.index(access) <= ACCESSES.index(needs)


async def _ask(function: Callable[[Any], Any], about: Any) -> Any:
    """Call a function of the application; a plain one in a thread, because it may query a database."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004  # whether it is a coroutine's
        return await function(about)
    found = await run_in_threadpool(function, about)
    return await found if inspect.isawaitable(found) else found
