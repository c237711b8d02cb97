"""Schedules: runs that a worker asks for at their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from durable_core.clock import Clock
from durable_core.flow import Flow
from durable_core.store import Store

CatchUp = Literal["none", "last"]


class Schedules:
    """The schedules of one worker."""

    def __init__(self, store: Store, clock: Clock, visibility_timeout: float) -> None:
        self._store: Final = store
        self._clock: Final = clock

    def add(
        self,
        expression: str,
        flow: Flow[Any, Any],
        *,
        name: str | None,
        timezone: str,
        catch_up: CatchUp,
        input: Mapping[str, Any] | Callable[..., Mapping[str, Any]] | None,
    ) -> None:
        """Not built yet."""
        raise NotImplementedError

    async def tick(self) -> int:
        """Ask for the runs whose times have come; return how many. Costs nothing while no time has come."""
        return 0
