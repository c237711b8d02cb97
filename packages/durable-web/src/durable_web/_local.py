"""Pages without accounts: the person at this machine, who opens a link that works once."""

from __future__ import annotations

import getpass
import hmac
import ipaddress
import logging
import secrets
from typing import Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ._origin import base_of
from ._tokens import Tokens
from ._users import Access, User

_SECONDS: Final = 12 * 3600
_WHY: Final = (
    "without user= the page serves this machine's loopback address alone (127.0.0.1, localhost): whoever else can reach it could"
    " decide and cancel; pass user=, a function of the request that returns who is signed in"
)
_logger: Final = logging.getLogger("durable_web")


def is_loopback(host: str) -> bool:
    """Return True if a host's name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_unless_loopback(host: str) -> None:
    """Raise `ValueError` for an address that other machines can reach."""
    if not is_loopback(host):
        raise ValueError(f"host {host!r} can be reached from other machines: {_WHY}")


class Local:
    """The visitors of a page without accounts: one person, who has the link that the server printed."""

    def __init__(self, tokens: Tokens, name: str | None) -> None:
        self._tokens: Final = tokens
        self._name: Final = name
        self._key = secrets.token_urlsafe(24)
        self._told: str | None = None

    def link(self, base_url: str) -> str:
        """Return the link that works once."""
        self._told = self._key
        return f"{base_url}/enter?key={self._key}"

    async def of(self, request: Request) -> User | None:
        """Return the person at this machine, or None if the link was not used. Raises `HTTPException` for other machines."""
        self.refuse_others(request)
        if self._tokens.is_session(request.cookies.get(_cookie(request), "")):
            return User(self._name or _name())
        if self._told != self._key:  # nobody has printed it yet
            base = f"{request.url.scheme}://{request.headers['host']}{base_of(request)}"
            _logger.warning("to see the page, open %s (it works once)", self.link(base))
        return None

    async def access(self, user: User) -> Access | None:
        """Let the person at this machine do everything."""
        return "all"

    async def enter(self, request: Request) -> Response:
        """Let the person with the link in, and invalidate it. Raises `HTTPException` if it was used or changed."""
        self.refuse_others(request)
        if request.method != "GET":  # looking at the link doesn't use it
            raise HTTPException(405, "open the link with GET")
        base = base_of(request)
        answer = RedirectResponse(f"{base}/", 303)
        if self._tokens.is_session(request.cookies.get(_cookie(request), "")):
            return answer
        if not hmac.compare_digest(request.query_params.get("key", "").encode(), self._key.encode()):
            raise HTTPException(
                403, "this link was used before, or is of another server: open the page, and its server prints a new link"
            )
        self._key = secrets.token_urlsafe(24)
        secure = request.url.scheme == "https"
        session = self._tokens.for_session()
        answer.set_cookie(_cookie(request), session, _SECONDS, path=base or "/", secure=secure, httponly=True, samesite="lax")
        return answer

    def refuse_others(self, request: Request) -> None:
        """Raise `HTTPException` unless the request comes from this machine, to one of its own names."""
        server, client = request.scope.get("server"), request.scope.get("client")
        asked = [_asked_for(request)[0], server[0] if server else "", client[0] if client else ""]
        if not all(map(is_loopback, asked)):  # another name: a page elsewhere made it resolve to this machine
            raise HTTPException(403, _WHY)


def _asked_for(request: Request) -> tuple[str, int | None]:
    """Return the name and the port in the request's `Host`; no name if it has none."""
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}")
        return host.hostname or "", host.port
    except ValueError:
        return "", None


def _cookie(request: Request) -> str:
    """Return the name of a session's cookie. It contains the port, because browsers send cookies to all ports of a machine."""
    return f"durable_session_{_asked_for(request)[1] or 80}"


def _name() -> str:
    """Return the name of the user who runs the server."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "local"
