"""The page, as an ASGI app."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from durable_core.store import Store, check_store

from ._acting import VERBS
from ._deciding import answer_link, decide, show_link
from ._door import Door, Headers
from ._local import Local
from ._notifying import Notifier, Notify
from ._probes import health, metrics
from ._showing import Redact, Showing
from ._site import Site
from ._static import static_routes
from ._tokens import Tokens, check_secret
from ._users import GetAccess, GetUser, Users
from ._views import PAGES, STREAMS


class Page:
    """An ASGI app that shows the runs of a store and lets people decide. Mount it or serve it."""

    def __init__(self, site: Site, notifier: Notifier) -> None:
        self._site: Final = site
        self._notifier: Final = notifier
        self._door: Final = (door := Door(site))
        routes: list[Route] = [
            *(Route(f"/{path}", door.shows(view), methods=["GET"]) for path, view in PAGES.items()),
            *(Route(f"/{path}", door.shows(view, is_stream=True), methods=["GET"]) for path, view in STREAMS.items()),
            *(Route(f"/act/{verb}", door.acts(view), methods=["POST"]) for verb, view in VERBS.items()),
            Route("/act/decide", door.acts(decide, needs="decide"), methods=["POST"]),
            Route("/decide", door.by_link(show_link, answer_link), methods=["GET", "POST"]),
            Route("/healthz", health(site), methods=["GET"]),
            Route("/metrics", door.shows(metrics), methods=["GET"]),
            *static_routes(),
        ]
        if isinstance(site.people, Local):
            routes.append(Route("/enter", site.people.enter, methods=["GET"]))
        self._app: Final = Starlette(
            routes=routes,
            middleware=[Middleware(Headers)],
            exception_handlers={HTTPException: self._refused},
            lifespan=self.lifespan,
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Call `notify=` for new approvals until the context ends.

        A server does this for an app that it serves, but not for one that is mounted. Pass it to the outer app, as in
        `FastAPI(lifespan=page.lifespan)`, or enter it in your own lifespan. Any number of processes may do so at the same time.
        """
        async with self._notifier.running():
            yield

    async def notify_once(self) -> int:
        """Call `notify=` for each new approval, and return how many calls succeeded. For cron and similar."""
        return await self._notifier.round()

    def one_time_link(self, url: str) -> str | None:
        """Return the link that lets one browser in, if the page has no `user=`; otherwise None. `url` is the page's address."""
        return self._site.people.link(url.rstrip("/")) if isinstance(self._site.people, Local) else None

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._site.refused(request, error)


def app(
    store: Store,
    *,
    user: GetUser | None = None,
    access: GetAccess | None = None,
    redact: Redact | None = None,
    notify: Notify | None = None,
    secret: str | None = None,
    title: str = "Durable",
    by: str | None = None,
) -> Page:
    """Make the page of a store, as an ASGI app to mount or serve.

    `user` is a function of the request that returns the visitor as a `User`, or None for somebody who may see nothing. It may
    raise Starlette's `HTTPException`, for example to redirect to a sign-in page. `access` is a function of the user that returns
    "read", "decide", "all", or None for nothing; without it, every user may do everything. Both are called on every request and
    may be async; a plain function runs in a thread. Without `user`, the page answers only on this machine's loopback address, and
    only to a browser that opened the link that is printed to the log and works once. Its visitor is then `by`, by default the
    system's user, and may do everything.

    `redact` returns what is shown in place of a value. `notify` is called at least once for each new approval, while the page is
    served or `lifespan` is entered. `secret` signs forms, sessions and decision links. Pass one if several processes serve the
    page, if sessions should survive restarts, or for `decision_link`; otherwise each start makes its own.

    Raises `TypeError` or `ValueError` for an invalid argument.
    """
    check_store(store)
    for what, given in (("user", user), ("access", access), ("redact", redact), ("notify", notify)):
        if given is not None and not callable(given):
            raise TypeError(f"{what} must be a function, not {given!r}")
    if access is not None and user is None:
        raise TypeError("access= says what a user may do, so it needs user=, a function of the request that returns the user")
    if not isinstance(title, str) or not title:
        raise TypeError(f"title must be a str, not {title!r}")
    if by is not None and not isinstance(by, str):
        raise TypeError(f"by must be a str, not {by!r}")
    if by == "":
        raise ValueError("by must be a name, not ''")
    if by is not None and user is not None:
        raise TypeError("by= names the visitor of a page without user=; leave out one of the two")
    tokens = Tokens(secrets.token_urlsafe(32) if secret is None else check_secret(secret))
    people = Local(tokens, by) if user is None else Users(user, access)
    return Page(Site(store, title, Showing(redact), tokens, people), Notifier(store, notify))
