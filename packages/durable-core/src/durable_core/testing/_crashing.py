"""A store that fails, or takes the process down, exactly where a test wants it."""

from __future__ import annotations

import os
import signal
from typing import Final, Literal

from durable_core.errors import StoreError
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.stores.passing import PassingStore


class InjectedFault(StoreError):
    """The failure that a `CrashingStore` raises because it was told to."""


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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._store!r}, at={self._at}, when={self._when!r}, how={self._how!r})"
