"""Who a visitor is, and what they may: asked of the application on every request."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar, get_args

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

T = TypeVar("T")

Access = Literal["all", "decide", "read"]
"""What a user may: `read` sees everything, `decide` also approves and rejects, `all` also retries, cancels and the like."""
ACCESSES: Final = get_args(Access)


class User(msgspec.Struct, frozen=True):
    """Who visits the page."""

    name: str
    """What is recorded as `by`, and what approvals name in `approvers`."""
    data: Any = None
    """Anything that `access=` goes by, such as roles."""
    by_link: bool = False
    """Whether all that is known of the person is that they hold a decision link made out to this name."""


GetUser = Callable[[Request], User | None] | Callable[[Request], Awaitable[User | None]]
GetAccess = Callable[[User], Access | None] | Callable[[User], Awaitable[Access | None]]


class Users:
    """What the application says of visitors."""

    def __init__(self, user: GetUser, access: GetAccess | None) -> None:
        self._user: Final = user
        self._access: Final = access

    async def of(self, request: Request) -> User | None:
        """Return who visits, or None. Raises `TypeError` where `user=` returns anything else."""
        user: Any = await _ask(self._user, request)
        if user is None:
            return None
        if not isinstance(user, User):
            raise TypeError(f"user= must return a durable_web.User or None, not a {type(user).__name__}")
        if not isinstance(user.name, str) or not user.name or user.name.startswith("$") or not user.name.isprintable():
            raise ValueError(f"user= must return a User whose name is printable and doesn't start with '$', not {user.name!r}")
        return user

    async def access(self, user: User) -> Access | None:
        """Return what a user may. Raises `TypeError` where `access=` returns anything else."""
        if self._access is None:
            return "all"
        access: Any = await _ask(self._access, user)
        if access is not None and access not in ACCESSES:
            raise TypeError(f"access= must return 'all', 'decide', 'read' or None, not {access!r}")
        return access  # type: ignore[no-any-return]  # it was looked at


def may(access: Access, needs: Access) -> bool:
    """Tell whether who has `access` may do what needs `needs`."""
    return ACCESSES.index(access) <= ACCESSES.index(needs)


async def _ask(function: Callable[[Any], Any], about: Any) -> Any:
    """Call a function of the application's; a plain one in a thread, since it may ask a database."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004  # whether it is a coroutine's
        return await function(about)
    found = await run_in_threadpool(function, about)
    return await found if inspect.isawaitable(found) else found
