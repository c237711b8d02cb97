"""A store that passes all calls on to another one."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from durable_core.record import StepRecord
from durable_core.store import Store


class PassingStore(Store):
    """Passes each call on to `store`, and has the same abilities. Subclasses change single calls."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store

    async def append(self, record: StepRecord) -> StepRecord:
        return await self._store.append(record)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._store.get(run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._store.list(run_id)

    async def clear(self, run_id: str) -> None:
        await self._store.clear(run_id)

    async def __aenter__(self) -> Self:
        if enter := getattr(self._store, "__aenter__", None):
            await enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if leave := getattr(self._store, "__aexit__", None):
            await leave(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._store, name)
