"""The origin of a request, and the path of the page."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request

_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def is_from_own_page(request: Request) -> bool:
    """Return True if a page of this origin posts, by `Sec-Fetch-Site`, which pages can't forge, or else by `Origin`."""
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site == "same-origin"
    origin = request.headers.get("origin", "")
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc != "" and parts.netloc == request.headers.get("host")
    except ValueError:
        return False


def base_of(request: Request) -> str:
    """Return the prefix of all paths of the page: what a proxy removes, and where the page is mounted."""
    mounted = str(request.scope.get("root_path", "")).rstrip("/")
    cut_off = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    if not _PREFIX.fullmatch(cut_off) or mounted == cut_off or mounted.startswith(f"{cut_off}/"):
        return mounted
    return f"{cut_off}{mounted}"


def url_under(base: str, path: str = "", /, **query: Any) -> str:
    """Return the URL of a page or a static file. None and empty strings are left out of the query."""
    given = {name: value for name, value in query.items() if value not in (None, "", [])}
    return f"{base}/{path}{'?' if given else ''}{urlencode(given, doseq=True)}"
