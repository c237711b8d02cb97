"""What a store has open: its files, the thread that touches them, and the batches on their way there."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

from durable_core import Batcher
from durable_core.store import forks

from ._explain import NoRoom
from ._log import Entry
from ._logs import Logs, Step
from ._worker import Worker

Item = TypeVar("Item")
Result = TypeVar("Result")


class Opened:
    """What a store has open in one process."""

    def __init__(self, folder: Path) -> None:
        self._forks: Final = forks()
        self.logs: Final = Logs(folder)
        self.worker: Final = Worker(at_end=self.logs.close)
        self.appends: Final = _Batchers(self.worker.run, self.logs.append, size=_size, refused=NoRoom)
        self.reads: Final = _Batchers(self.worker.run, self.logs.get, size=_no_size, refused=())

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child of the one that opened it: it has no thread, and must not share locks."""
        return self._forks != forks()


class _Batchers(Generic[Item, Result]):
    """One batcher a log, which lives for as long as something goes through it, or until that of another log is used."""

    def __init__(
        self,
        run: Callable[..., Awaitable[list[Result]]],
        work: Callable[[str, Sequence[Item]], list[Result]],
        *,
        size: Callable[[Item], int],
        refused: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        self._run: Final = run
        self._work: Final = work
        self._size: Final = size
        self._refused: Final = refused
        self._latest: tuple[str, Batcher[Item, Result] | None] = ("", None)
        self._batchers: Final[weakref.WeakValueDictionary[str, Batcher[Item, Result]]] = weakref.WeakValueDictionary()

    def __call__(self, name: str) -> Batcher[Item, Result]:
        latest, batcher = self._latest
        if batcher is None or latest != name:
            batcher = self._batchers.get(name)
            if batcher is None:
                flush = partial(self._run, self._work, name)
                batcher = self._batchers[name] = Batcher(flush, size=self._size, refused=self._refused)
            self._latest = name, batcher
        return batcher


def _size(entry: Entry) -> int:
    return len(entry[2])


def _no_size(step: Step) -> int:
    return 0
