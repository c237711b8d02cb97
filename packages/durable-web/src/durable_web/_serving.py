"""Serving the page, by default on this machine only."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from durable_core.store import Store

from ._local import refuse_unless_loopback
from .page import app

_logger: Final = logging.getLogger("durable_web")


async def serve(
    store: Store, *, host: str = "127.0.0.1", port: int = 8000, ready: Callable[[str], object] | None = None, **options: Any
) -> None:
    """Serve the page of a store with uvicorn until SIGTERM or SIGINT. `options` are those of `app`.

    Once the page answers, `ready` is called with the URL to open, or with the one-time link if there is no `user=`. Without
    `ready`, the URL is logged. Port 0 takes a free port. Raises `ValueError` if there is no `user=` and others can reach the
    host, `OSError` if the port is not available, and `ModuleNotFoundError` without uvicorn.
    """
    page = app(store, **options)
    if options.get("user") is None:
        refuse_unless_loopback(host)
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("serving the page needs uvicorn: install durable-web[serve]", name="uvicorn") from error

    with _listening(host, port) as listener:
        config = uvicorn.Config(
            page,
            log_level="warning",
            server_header=False,
            proxy_headers=options.get("user") is not None,  # without accounts, nobody else's word counts
            timeout_graceful_shutdown=2,  # a page that is watched stays open
        )
        server = uvicorn.Server(config)
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{listener.getsockname()[1]}"
        link = page.one_time_link(url) or url
        if ready is None:
            _logger.warning("the page is at %s", link)
        else:
            ready(link)
        await server.serve([listener])


def _listening(host: str, port: int) -> socket.socket:
    """Listen from now on: whoever opens the link waits, and is not refused."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(error.errno, f"can't serve on {host} port {port}: {error.strerror}; choose another with port=") from error
