"""The factory of the page."""

from __future__ import annotations

import secrets
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from durable_core.store import Store, check_store

from ._acting import VERBS
from ._deciding import decide
from ._door import Door, Headers
from ._notifying import Notify
from ._showing import Redact, Showing
from ._site import Site
from ._tokens import Tokens, check_secret
from ._users import GetAccess, GetUser, Users
from ._views import PAGES, STREAMS


class Page:
    """An ASGI app that shows runs and lets people decide: mount it, or serve it."""

    def __init__(self, site: Site) -> None:
        self._site: Final = site
        door = Door(site)
        routes: list[BaseRoute] = [
            *(Route(f"/{path}", door.shows(view), methods=["GET"]) for path, view in PAGES.items()),
            *(Route(f"/{path}", door.shows(view, seconds=None), methods=["GET"]) for path, view in STREAMS.items()),
            *(Route(f"/act/{verb}", door.acts(view), methods=["POST"]) for verb, view in VERBS.items()),
            Route("/act/decide", door.acts(decide, needs="decide"), methods=["POST"]),
            Mount("/static", StaticFiles(packages=[("durable_web", "static")])),
        ]
        self._app: Final = Starlette(
            routes=routes, middleware=[Middleware(Headers)], exception_handlers={HTTPException: self._refused}
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = self._site.refusal(request, error.status_code, error.detail)
        answer.headers.update(error.headers or {})
        return answer


def app(
    store: Store,
    *,
    user: GetUser | None = None,
    access: GetAccess | None = None,
    redact: Redact | None = None,
    notify: Notify | None = None,
    secret: str | None = None,
    title: str = "Durable",
) -> Page:
    """Make the page of a store."""
    check_store(store)
    tokens = Tokens(secrets.token_urlsafe(32) if secret is None else check_secret(secret))
    users = None if user is None else Users(user, access)
    return Page(Site(store, title, Showing(redact), tokens, users))
