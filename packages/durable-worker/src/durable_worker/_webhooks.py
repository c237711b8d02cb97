"""Webhooks: runs that a delivery asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from durable_core.flow import Flow
from durable_core.store import Store

from .signatures import Verify


class Webhooks:
    """The webhooks of one worker, and the application that serves them."""

    def __init__(self, store: Store, is_healthy: Callable[[], bool]) -> None:
        self._store: Final = store
        self._is_healthy: Final = is_healthy

    def add(
        self,
        path: str,
        flow: Flow[Any, Any] | None,
        *,
        verify: Verify,
        run_id: Callable[[Any], str] | None,
        input: Callable[[Any], Any] | None,
        send_to: Callable[[Any], tuple[str, str]] | None,
        max_body: int,
    ) -> None:
        """Not built yet."""
        raise NotImplementedError

    @property
    def app(self) -> Any:
        """The ASGI application."""
        raise NotImplementedError
