"""A store whose methods block."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from durable_core._system.faces import Home
from durable_core.errors import Refused
from durable_core.record import StepRecord
from durable_core.store import Store as AsyncStore
from durable_core.store import check_store, runs_of
from durable_core.stores import opening

from ._loop import call, leave, why_not

T = TypeVar("T")


class Store:
    """An asynchronous store as one whose methods block. Any number of threads may share it.

    `with open_store(url) as store:` opens and closes it. `durable_core.engine.asynchronous(store)` returns the asynchronous
    store.
    """

    def __init__(self, store: AsyncStore) -> None:
        check_store(store)
        self._store: Final = store
        self._home: Home | None = None

    @classmethod
    def _of(cls, store: AsyncStore, home: Home | None) -> Self:
        """Return a blocking store whose calls go to the loop of `home`, that it belongs to; None is the library's own."""
        blocking = cls(store)
        blocking._home = home
        return blocking

    @property
    def __durable_async__(self) -> AsyncStore:
        return self._store

    def __repr__(self) -> str:
        return f"durable_core.sync.Store({self._store!r})"

    def __enter__(self) -> Self:
        if (enter := getattr(self._store, "__aenter__", None)) is not None:
            call(lambda _: enter(), self._home)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        if (exit_ := getattr(self._store, "__aexit__", None)) is not None:
            leave(lambda _: exit_(kind, error, trace), self._home)

    def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot, as `durable_core.Store.append` does, and return the record that holds it."""
        return call(lambda _: self._store.append(record), self._home)

    def get(self, run_id: str, step_id: str) -> StepRecord | None:
        """Return the step's newest entry, or None if it has none."""
        return call(lambda _: self._store.get(run_id, step_id), self._home)

    def list(self, run_id: str) -> Sequence[StepRecord]:
        """Return all entries of the run in the order in which they were appended."""
        return call(lambda _: self._store.list(run_id), self._home)

    def clear(self, run_id: str) -> None:
        """Remove all entries of the run."""
        call(lambda _: self._store.clear(run_id), self._home)

    def runs(self, prefix: str = "") -> Generator[str, None, None]:
        """Yield each run id that starts with `prefix`. Raises `Refused` on a store that can't list its runs."""
        if (runs := runs_of(self._store)) is None:
            raise Refused(f"{self._store!r} can't list its runs: it has no method runs(prefix)")
        return iterate(runs.runs(prefix), self._home)


AnyStore = Store | AsyncStore
"""A blocking store, or an asynchronous store that serves any event loop: memory, file or SQLite."""


def open_store(url: str | None = None) -> Store:
    """Make the store that `url` names, as `durable_core.open_store` does: `with open_store("sqlite:./runs.db") as store:`."""
    return Store(opening.open_store(url))


def home_of(store: AnyStore) -> Home | None:
    """Return the home of a store's connections; None for the library's own loop."""
    return store._home if isinstance(store, Store) else None


def iterate(iterator: AsyncIterator[T], home: Home | None) -> Generator[T, None, None]:
    """Yield what an asynchronous iterator yields, and close that when this is left."""
    try:
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield call(lambda _: _next(iterator), home)
    finally:
        # Collected where it may not wait: then the loop closes the iterator, which nobody has any more.
        if isinstance(iterator, AsyncGenerator) and why_not() is None:
            leave(lambda _: iterator.aclose(), home)


async def _next(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)
