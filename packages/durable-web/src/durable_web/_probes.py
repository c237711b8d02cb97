"""Endpoints for programs: the health check and metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ._counting import as_text
from ._local import Local
from ._site import Site
from ._visit import Visit

_SECONDS: Final = 5.0
_logger: Final = logging.getLogger("durable_web")


def health(site: Site) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint that reports whether the store answers. It is open to all, and reports nothing else."""

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


async def metrics(site: Site, visit: Visit) -> Response:
    """Return the numbers of runs and approvals, for Prometheus. It needs read access."""
    return PlainTextResponse(as_text(await site.counts.now()), media_type="text/plain; version=0.0.4; charset=utf-8")
