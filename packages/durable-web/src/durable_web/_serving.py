"""Serving the page on this machine."""

from __future__ import annotations

from typing import Any

from durable_core.store import Store


async def serve(store: Store, *, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
    """Serve the page until it is interrupted."""
    raise NotImplementedError
