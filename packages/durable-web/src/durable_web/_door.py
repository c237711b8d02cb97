"""The entrance: each request is checked here before any view sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_core.errors import CorruptLog, NotFound, Refused, RunBusy, StoreError

from ._forms import Form, read_form
from ._links import Link, link_of
from ._local import Local
from ._origin import base_of, is_from_own_page
from ._site import Site
from ._users import Access, User, may
from ._visit import Visit

View = Callable[[Site, Visit], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]

_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not `no-referrer`, because browsers would then post forms from the origin `null`.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_logger: Final = logging.getLogger("durable_web")


class Headers:
    """Adds security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app: Final = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                given = _HEADERS if b"cache-control" in there else {**_HEADERS, "cache-control": "no-store"}
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in given.items())]
            await send(message)

        await self._app(scope, receive, sent if scope["type"] == "http" else send)


class Door:
    """Makes the endpoints of views. Each endpoint asks for the user and their access on every request."""

    seconds = 10.0
    """Seconds before the page says that the store is slow; three times as many for acts."""

    def __init__(self, site: Site) -> None:
        self._site: Final = site

    def shows(self, view: View, *, needs: Access = "read", is_stream: bool = False) -> Endpoint:
        """Return the endpoint of a view that changes nothing."""

        async def endpoint(request: Request) -> Response:
            user, access = await self._admitted(request)
            seconds = None if is_stream else self.seconds
            return await self._seen(self._visit(request, user, access, Form({})), view, needs, seconds)

        return self._answered(endpoint)

    def acts(self, view: View, *, needs: Access = "all") -> Endpoint:
        """Return the endpoint of a view that acts, only on POST from the page's own form."""

        async def endpoint(request: Request) -> Response:
            refuse_foreign(request)
            user, access = await self._admitted(request)
            if not may(access, needs):
                raise HTTPException(403, f"{user.name} may not do this; nothing was done")
            visit = self._visit(request, user, access, await read_form(request))
            self.check_token(visit)
            return await self._seen(visit, view, needs, 3 * self.seconds)

        return self._answered(endpoint)

    def by_link(self, view: View, act: View) -> Endpoint:
        """Return the endpoint of decision links: `view` shows on GET, `act` answers on POST, as the person of the link."""

        async def endpoint(request: Request) -> Response:
            is_post = request.method == "POST"
            if is_post:
                refuse_foreign(request)
            form = await read_form(request) if is_post else Form({})
            link = link_of(self._site.tokens, form.text("link") if is_post else request.query_params.get("link", ""))
            user, access = await self._holder_of(request, link)
            visit = self._visit(request, user, access, form)
            if is_post:
                self.check_token(visit)
            return await self._seen(visit, act if is_post else view, "decide", 3 * self.seconds)

        return self._answered(endpoint)

    def check_token(self, visit: Visit) -> None:
        """Raise `HTTPException` for a form that was made for another user, or too long ago."""
        if not self._site.tokens.is_form_of(visit.form.text("token"), visit.user.name):
            raise HTTPException(
                403, "this page is too old to act from, or was made for somebody else: reload it; nothing was done"
            )

    async def _admitted(self, request: Request) -> tuple[User, Access]:
        """Return the visitor and their access. Raises `HTTPException` for visitors who may see nothing."""
        people = self._site.people
        user = await people.of(request)
        if user is None:
            how = "open the link that the server printed" if isinstance(people, Local) else "sign in first"
            raise HTTPException(401, f"you are not signed in: {how}")
        access = await people.access(user)
        if access is None:
            raise HTTPException(403, f"{user.name} may not see this page")
        return user, access

    async def _holder_of(self, request: Request, link: Link) -> tuple[User, Access]:
        """Return the person with a link: the signed-in user if there is one, else the person of the link if `access=` allows."""
        people, holder = self._site.people, User(link.by, by_link=True)
        if isinstance(people, Local):
            people.refuse_others(request)
            return holder, "decide"
        elsewhere = HTTPException(401, "you are not signed in: sign in first")
        try:
            user = await people.of(request)
        except HTTPException as error:  # it redirects to a sign-in page
            user, elsewhere = None, error
        if user is not None and user.name != link.by:
            raise HTTPException(403, f"this link is for {link.by}, and you are signed in as {user.name}; nothing was done")
        access = await people.access(user or holder)
        if access is None:
            raise elsewhere if user is None else HTTPException(403, f"{user.name} may not see this page")
        return user or holder, access

    def _visit(self, request: Request, user: User, access: Access, form: Form) -> Visit:
        return Visit(request, base_of(request), user, access, self._site.tokens.for_forms(user.name), form)

    async def _seen(self, visit: Visit, view: View, needs: Access, seconds: float | None) -> Response:
        if not visit.may(needs):
            raise HTTPException(403, f"{visit.user.name} may not see this")
        try:
            async with asyncio.timeout(seconds):
                return await view(self._site, visit)
        except HTTPException as error:
            return self._site.refused(visit.request, error, visit)
        except (StoreError, Refused, RunBusy, OSError) as error:  # a TimeoutError is an OSError
            status, why = _told(error, is_action=visit.request.method == "POST")
            return self._site.refusal(visit.request, status, self._site.showing.text("error", why), visit)
        except (TypeError, ValueError) as error:  # what was typed isn't an id, or can't be recorded
            if visit.request.method != "POST":
                raise
            why = self._site.showing.text("error", str(error))
            return self._site.refusal(visit.request, 400, f"{why}; nothing was done", visit)

    def _answered(self, endpoint: Endpoint) -> Endpoint:
        """Always answer with a page."""

        async def answered(request: Request) -> Response:
            try:
                return await endpoint(request)
            except HTTPException as error:
                return self._site.refused(request, error)
            except Exception:
                _logger.exception("%s %s failed", request.method, request.url.path)
                return self._site.refusal(request, 500, "an error was raised while this page was made; the server's log shows it")

        return answered


def refuse_foreign(request: Request) -> None:
    """Raise `HTTPException` for a form that was posted from another site."""
    if not is_from_own_page(request):
        origin, host = request.headers.get("origin", "unknown"), request.headers.get("host")
        raise HTTPException(403, f"this came from another site ({origin}), and this page is at {host}; nothing was done")


def _told(error: Exception, *, is_action: bool) -> tuple[int, str]:
    """Return the status and the text for an error of a store or of `durable_core.control`."""
    if isinstance(error, NotFound):
        return 404, str(error)
    if isinstance(error, Refused | RunBusy):
        return 409, str(error)
    if isinstance(error, CorruptLog):
        return 500, str(error)
    done = "; it may have been done or not: look before you do it again" if is_action else ""
    if isinstance(error, TimeoutError) and not str(error):
        return 503, f"the store has not answered in time{done}"
    return 503, f"the store is away{done}: {error}"
