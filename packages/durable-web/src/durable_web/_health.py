"""Whether the page works, for probes: open to all, and tells nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ._local import Local
from ._site import Site

_SECONDS: Final = 5.0
_logger: Final = logging.getLogger("durable_web")


def health(site: Site) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint that tells whether the store answers."""

    async def endpoint(request: Request) -> Response:
        if isinstance(site.people, Local):
            site.people.refuse_others(request)
        try:
            async with asyncio.timeout(_SECONDS):
                await site.store.get("$healthz", "$healthz")
        except Exception as error:
            _logger.warning("the store doesn't answer: %s", str(error) or type(error).__name__)
            return JSONResponse({"store": "away"}, 503)
        return JSONResponse({"store": "ok"})

    return endpoint
