"""A store that fails, or takes the process down, exactly where a test wants it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

from durable_core.errors import StoreError
from durable_core.record import StepRecord
from durable_core.store import Store


class InjectedFault(StoreError):
    """The failure that a `CrashingStore` raises because it was told to."""


class PassingStore(Store):
    """Passes each call on to `store`, and has the same abilities."""

    def __init__(self, store: Store) -> None:
        self._store: Final = store

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._store.get(run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._store.list(run_id)

    async def clear(self, run_id: str) -> None:
        await self._store.clear(run_id)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._store, name)


class CrashingStore(PassingStore):
    """Wraps `store` and breaks its append number `at`, counted from 1, once; before and after that it works as usual.

    With `when="before"` the record is not stored, with `"after"` it is stored and only the acknowledgement is lost. `how="fail"`
    raises `InjectedFault`; `how="kill"` kills this process on the spot, as SIGKILL does: no handler or `finally` runs, no buffer
    is flushed. Everything else that `store` can do works unchanged. `appends` counts the appends so far.
    """

    def __init__(
        self,
        store: Store,
        at: int,
        *,
        when: Literal["before", "after"] = "before",
        how: Literal["fail", "kill"] = "fail",
    ) -> None:
        if isinstance(at, bool) or not isinstance(at, int):
            raise TypeError(f"at={at!r}: expected the number of an append, from 1")
        if at < 1:
            raise ValueError(f"at={at!r}: appends are counted from 1")
        if when not in ("before", "after"):
            raise ValueError(f"when={when!r}: expected 'before' or 'after'")
        if how not in ("fail", "kill"):
            raise ValueError(f"how={how!r}: expected 'fail' or 'kill'")
        super().__init__(store)
        self._at: Final = at
        self._when: Final = when
        self._how: Final = how
        self.appends: int = 0

    async def append(self, record: StepRecord) -> StepRecord:
        self.appends += 1
        crashes = self.appends == self._at
        if crashes and self._when == "before":
            self._crash(record)
        held = await self._store.append(record)
        if crashes:
            self._crash(record)
        return held

    def _crash(self, record: StepRecord) -> None:
        if self._how == "kill":
            # Windows has no SIGKILL; there os.kill is TerminateProcess, whatever the signal.
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        raise InjectedFault(
            f"append {self._at} failed as asked, {self._when} {record.step_id!r} (revision {record.revision}) was stored"
        )

    async def __aenter__(self) -> Self:
        if enter := getattr(self._store, "__aenter__", None):
            await enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if leave := getattr(self._store, "__aexit__", None):
            await leave(kind, error, trace)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store!r}, at={self._at}, when={self._when!r}, how={self._how!r})"
