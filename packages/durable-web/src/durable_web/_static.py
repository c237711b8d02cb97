"""The static files of the pages. They are read once and served by name, so that no path reaches other files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Not from `mimetypes`, which depends on the machine. Browsers don't run a script of another type.
_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}


def static_routes() -> Iterator[Route]:
    """Make the routes of the static files."""
    for file in files("durable_web").joinpath("static").iterdir():
        if (media_type := _TYPES.get(file.name.rpartition(".")[2])) is not None:
            yield _route(file.name, file.read_bytes(), media_type)


def _route(name: str, content: bytes, media_type: str) -> Route:
    # Revalidated each time, so that a new version of the page doesn't get an old style.
    headers = {"etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "cache-control": "no-cache"}

    async def endpoint(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(None, 304, headers)
        return Response(content, 200, headers, media_type)

    return Route(f"/static/{name}", endpoint, methods=["GET"])
