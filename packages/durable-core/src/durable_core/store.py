"""The contract of a store: four methods, one guarantee, and optional abilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import msgspec

# For stores, whose locks must not stay half taken.
from ._system.waits import to_the_end as to_the_end
from .record import StepRecord

if TYPE_CHECKING:
    from .stores.flows import FlowState

A = TypeVar("A")


class Store(Protocol):
    """A place that keeps the logs of runs. These docstrings are the specification; `durable_core.testing.StoreTests` checks it.

    A method either does its work or raises an exception. It doesn't wait forever, and it never blocks the event loop. A store
    with connections belongs to one event loop; other stores serve any.
    """

    @abstractmethod
    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the slot `(run_id, step_id, revision)` for `record`.

        If the slot is empty, `record` is durable before this returns, and is returned. If it is taken, nothing is written and
        the record that holds it is returned. Among any number of concurrent appends to one slot, from any number of processes
        and machines, exactly one wins and all get the same record back. A record that was returned, to the winner or to a loser,
        is durable, and every later `get` and `list` sees it, from anywhere.

        When it raises or is cancelled, the record may be there or not: append the same record again and compare `id`.
        """

    @abstractmethod
    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        """Return the step's entry with the highest revision, or None if it has none."""

    @abstractmethod
    async def list(self, run_id: str) -> Sequence[StepRecord]:
        """Return all entries of the run in the order in which they were appended; empty if there are none."""

    @abstractmethod
    async def clear(self, run_id: str) -> None:
        """Remove all entries of the run, the newest first, so that a crash in the middle leaves a prefix and never a hole.

        Clearing a run that isn't there does nothing. Other runs are not touched.
        """


def check_store(store: object) -> None:
    """Raise `TypeError` for an object that is not a store, before it is used."""
    if isinstance(store, str):
        raise TypeError(
            "store must be an open store, not its URL: write `async with open_store(url) as store:` (`with` in durable_core.sync)"
        )
    if isinstance(store, type):
        raise TypeError(f"store must be a store, not the class {store.__name__}: make an instance first")
    if hasattr(store, "__durable_async__"):
        raise TypeError(
            f"{store!r} is a blocking store of durable_core.sync: use durable_core.sync.Runner and its control, or pass the"
            " asynchronous store, durable_core.engine.asynchronous(store)"
        )
    for method in ("append", "get", "list", "clear"):
        if not callable(getattr(store, method, None)):
            raise TypeError(f"store must have the methods of durable_core.Store; {store!r} has no {method!r}")


class SupportsRuns(Protocol):
    """A store that can name the runs it holds."""

    @abstractmethod
    def runs(self, prefix: str = "") -> AsyncIterator[str]:
        """Yield the id of each run with at least one entry whose id starts with `prefix`, each once, in no particular order."""


class SupportsScan(Protocol):
    """A store that can read a long log piece by piece."""

    @abstractmethod
    def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        """Yield what `list` returns, in the same order. Memory is bounded, however long the log is."""


class Lease(Protocol):
    """A run's lock while it is held."""

    @abstractmethod
    def check(self) -> None:
        """Raise `LockLost` if the lock may be lost. It is called before every step, from any thread, and never waits."""


class SupportsLock(Protocol):
    """A store with locks, so that only one runner at a time works on a run."""

    lease_seconds: float | None = None
    """How long a lock may outlive its holder's process, in seconds; None if it ends with the process."""

    @abstractmethod
    def lock(self, run_id: str) -> AbstractAsyncContextManager[Lease]:
        """Hold the run exclusively, among all processes and machines, until the context ends or the process dies.

        Entering raises `RunBusy` at once if another holder has the lock. The lock doesn't prevent anybody from appending: it
        saves work, and the slots keep the log correct. The context may be left in another task than it was entered in.
        """


class Holder(msgspec.Struct, frozen=True):
    """Who holds a run's lock."""

    name: str
    """The process and its machine, as far as the store knows."""
    since: datetime | None
    """When the lock was taken, or None if that is unknown."""


class SupportsHolder(Protocol):
    """A store that can tell who holds a run's lock, without taking it."""

    @abstractmethod
    async def holder(self, run_id: str) -> Holder | None:
        """Return who holds the run's lock, or None if nobody does."""

    @abstractmethod
    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        """Return the holder of each of the runs that is held, in one request if the store can do that."""


class SupportsPolling(Protocol):
    """A store that can look up many steps in one request, which all runs that wait in a process share."""

    poll_seconds: float
    """Seconds between two calls of `newer` while runs wait."""

    @abstractmethod
    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        """Return the newest entry of each `(run_id, step_id, revision)` whose newest revision is above the one given.

        A revision of -1 stands for a step without entries. The entries are returned in no particular order.
        """


class SupportsMarks(Protocol):
    """A store that can tell cheaply which runs changed. If a store has no wake-ups, a worker looks at these runs again."""

    @abstractmethod
    async def marks(self, prefix: str = "") -> Mapping[str, Hashable]:
        """Return a mark for each run; the mark changes whenever something is appended to the run's log.

        Every run that has an entry and whose id starts with `prefix` is included; runs without entries may be too. Reading
        doesn't change marks. If each run has its own log, a damaged log doesn't hide other runs.
        """


class SupportsFlows(Protocol):
    """A store that finds runs by their state, without reading their logs."""

    flow_states: Collection[FlowState] | None = None
    """The states in which this store finds runs; None for all. On S3: the states of runs that have not ended."""

    @abstractmethod
    async def flows(
        self,
        prefix: str = "",
        *,
        names: Collection[str] | None = None,
        states: Collection[FlowState] | None = None,
        since: datetime | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> Sequence[StepRecord]:
        """Return the newest `$flow` entry of at most `limit` runs in `flow_states`; the run that began last comes first.

        The order is descending by `(started_at, run_id)` of that entry, and ids compare by their code points. `prefix` is the
        start of their run ids, `names` are names of flows, and `states` are results of `state_of` for the entry; None means all.
        `since` leaves out runs that began earlier. `before` leaves out all runs up to that `(started_at, run_id)`: pass those of
        the last entry of a page to get the next page. Fewer than `limit` entries are returned only if there are no more.
        Entries that can't be read are left out; if there are no others, `CorruptLog` is raised.

        Every run whose `append` has returned is included. An index that is written before the log may contain a run that
        doesn't exist or has another state, so callers check the log.
        """


class WakeUp(msgspec.Struct, frozen=True):
    """A message to workers: look at this run, not before then. It may come twice or for nothing, but it is never lost."""

    run_id: str
    flow: str
    """The name of the run's flow. Only workers that have this flow take the message."""
    at: datetime
    token: str
    """Identifies this message among those of the same run. It stays the same when the message is shown again."""
    now: datetime
    """The store's clock when the message was set, or when it was taken."""


class SupportsWakeups(Protocol):
    """A store that keeps messages that say when to look at a run again.

    If a store can't hide messages from others, it sets `hides_wakeups = False`. Then only the caller that took a wake-up is
    kept from getting it again within the visibility timeout.
    """

    hides_wakeups: bool = True
    """True if `take_wakeups` hides the wake-ups that it returns from everybody."""

    @abstractmethod
    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        """Set another wake-up for the run. It is durable once this returns. A run may have several, and need not exist.

        Raises `ValueError` for a time without a time zone.
        """

    @abstractmethod
    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        """Return at most `limit` wake-ups of these flows that are due by the store's clock, the oldest first.

        They are hidden from everybody for `visibility_timeout`, and shown again after that unless they are cleared. Until then
        no other caller gets them. Fewer than `limit` may be returned while others take some.
        """

    @abstractmethod
    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        """Remove wake-ups by their tokens, whether they are due, hidden or neither. Those that no longer exist are ignored."""


class SupportsWatch(Protocol):
    """A store that notifies waiting runners when somebody acts on a run, so that they need not look every two seconds."""

    @abstractmethod
    def watch(self, run_id: str) -> AsyncIterator[None]:
        """Yield once when listening begins, once after every reconnection, and whenever somebody acted on the run.

        To act is to append without holding the run's lock, or to end the run's flow. A runner's own steps notify nobody. One
        notification may stand for several acts, and some may come without any. The iterator ends at once if the server can't
        notify, and continues after an outage. Runners that wait still look into the store every 30 seconds.
        """


class StoreTransaction(Protocol):
    """An open transaction of a store."""

    @property
    @abstractmethod
    def connection(self) -> Any:
        """The driver's connection inside the transaction, for the caller's own SQL."""

    @abstractmethod
    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot within the transaction, and return its holder, waiting for a rival that hasn't committed."""


class SupportsTransaction(Protocol):
    """A store that can commit a step's own writes together with its record."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open a transaction. The end of the context commits it if its record won its slot, and otherwise rolls it back."""

    @abstractmethod
    def is_retryable(self, error: BaseException) -> bool:
        """Return True if the whole transaction should run again after `error`."""


class SupportsTransact(Protocol):
    """A store that can commit a step's own writes together with its record, in the store's own thread.

    There is one writer at a time, and an `await` would block all others. So the work is a plain function.
    """

    @abstractmethod
    async def transact(self, work: Callable[[Any], StepRecord | None]) -> StepRecord | None:
        """Call `work(connection)` in the store's thread, in a transaction that also appends the record that it returns.

        Returns the holder of the record's slot. The transaction commits if that is the record itself. It is rolled back if
        another record holds the slot, or if `work` returned None or raised. When this raises or is cancelled, either everything
        was committed or nothing was: read the log to find out.
        """


class Joined(Protocol):
    """A caller's own transaction, in which the store reads and appends."""

    @abstractmethod
    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot within the transaction, and return its holder, waiting for a rival that hasn't committed."""

    @abstractmethod
    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        """Return the step's newest entry as the transaction sees it."""

    @abstractmethod
    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        """Set a wake-up that exists if the transaction commits."""


class SupportsConnection(Protocol):
    """A store that can append in a transaction that the caller began on its own connection."""

    @abstractmethod
    def within(self, connection: Any) -> Joined:
        """Join the caller's transaction. What is appended exists if the transaction commits.

        Raises `TypeError` for an object that isn't a connection of the store's driver, and `StoreError` for a connection that is
        not in a transaction.
        """


class OpenableStore(Store, Protocol):
    """A store that `open_store` can make. Entry points in the group `durable_core.stores` name such a class."""

    @classmethod
    @abstractmethod
    def from_url(cls, url: str) -> Self:
        """Make a store from its URL without connecting. Options are query parameters; an unknown one raises `StoreError`."""

    @abstractmethod
    async def __aenter__(self) -> Self:
        raise NotImplementedError

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close what this store opened, but nothing that it was given."""


def _finder(ability: Callable[..., A]) -> Callable[[Store], A | None]:
    """Make a function that returns a store if it has all methods of an ability, and otherwise None."""
    methods: frozenset[str] = ability.__abstractmethods__  # type: ignore[attr-defined]  # it is a protocol

    def find(store: Any) -> A | None:
        # A wrapper may forward abilities with `__getattr__`, which `isinstance` with a protocol doesn't see.
        found: A | None = store if all(callable(getattr(store, method, None)) for method in methods) else None
        return found

    return find


runs_of: Final = _finder(SupportsRuns)
scan_of: Final = _finder(SupportsScan)
lock_of: Final = _finder(SupportsLock)
holder_of: Final = _finder(SupportsHolder)
polling_of: Final = _finder(SupportsPolling)
marks_of: Final = _finder(SupportsMarks)
flows_of: Final = _finder(SupportsFlows)
transaction_of: Final = _finder(SupportsTransaction)
transact_of: Final = _finder(SupportsTransact)
connection_of: Final = _finder(SupportsConnection)
wakeups_of: Final = _finder(SupportsWakeups)
watch_of: Final = _finder(SupportsWatch)
