"""What a store is: four methods and one guarantee, and the abilities that it may add."""

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

    A method either does what it says or raises; it does not wait for ever, and it never blocks the event loop. A store with
    connections belongs to one event loop; the others serve any.
    """

    @abstractmethod
    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the slot `(run_id, step_id, revision)` for `record`.

        If the slot is empty, `record` is durable before this returns, and is returned. If it is taken, nothing is written and
        the record that holds it is returned. Among any number of concurrent appends to one slot, from any number of processes
        and machines, exactly one wins and all get the same record back. What has been returned, to the winner or to a loser, is
        durable and is seen by every later `get` and `list`, from anywhere.

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
    """Raise `TypeError` for what is no store, before anything is done with it."""
    if isinstance(store, str):
        raise TypeError(
            "a store is needed, not its URL: write `async with open_store(url) as store:`, or `with` that of durable_core.sync"
        )
    if isinstance(store, type):
        raise TypeError(f"a store is needed, not the class {store.__name__}: make one first")
    if hasattr(store, "__durable_async__"):
        raise TypeError(
            f"{store!r} is a blocking store of durable_core.sync: use durable_core.sync.Runner and its control, or give the"
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
        """Yield what `list` returns, in the same order, in memory bounded however long the log is."""


class Lease(Protocol):
    """What holding a run's lock gives."""

    @abstractmethod
    def check(self) -> None:
        """Raise `LockLost` once the lock may no longer be held. Asked before every step, from any thread; never waits."""


class SupportsLock(Protocol):
    """A store that can let one runner at a time work on a run."""

    lease_seconds: float | None = None
    """How long a lock may outlive its holder's process; None where it is gone with it."""

    @abstractmethod
    def lock(self, run_id: str) -> AbstractAsyncContextManager[Lease]:
        """Hold the run exclusively, among all processes and machines, until the context ends or its process dies.

        Entering raises `RunBusy` at once where another holds it. The lock keeps nobody from appending: it saves work, while the
        slots keep the log right. The context may be left in another task than it was entered in.
        """


class Holder(msgspec.Struct, frozen=True):
    """Who holds a run's lock."""

    name: str
    """A process and its machine, as far as the store knows."""
    since: datetime | None
    """When the lock was taken, or None where that is not known."""


class SupportsHolder(Protocol):
    """A store that can tell who holds a run's lock, without taking it."""

    @abstractmethod
    async def holder(self, run_id: str) -> Holder | None:
        """Return who holds the run's lock, or None if nobody does."""

    @abstractmethod
    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        """Return the holders of those of the runs that are held, in one request where the store can."""


class SupportsPolling(Protocol):
    """A store that can look at many steps in one request: the runs that wait in a process share their looks."""

    poll_seconds: float
    """How often who waits should look: seconds between two rounds of `newer`."""

    @abstractmethod
    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        """Return the newest entry of each `(run_id, step_id, revision)` whose newest revision is above the one given.

        A revision of -1 stands for a step without entries. The order of what is returned means nothing.
        """


class SupportsMarks(Protocol):
    """A store that can tell cheaply which runs changed: a worker looks at those again, where a store has no wake-ups."""

    @abstractmethod
    async def marks(self, prefix: str = "") -> Mapping[str, Hashable]:
        """Return for each run a mark that is another one whenever something was appended to its log since.

        No run is missed that has an entry and whose id starts with `prefix`; one without entries may be among them. Reading
        changes no mark, and what is damaged in one run's log hides no other run where each has a log of its own.
        """


class SupportsFlows(Protocol):
    """A store that finds runs by how they stand, without reading their logs."""

    flow_states: Collection[FlowState] | None = None
    """The states in which runs are found, None for all; on S3 those of runs that have not ended."""

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
        """Return the newest `$flow` entry of runs in `flow_states`, those that began last first, and no more than `limit`.

        They are ordered by `(started_at, run_id)` of that entry, downwards, and ids by their code points. `prefix` is what their
        run ids start with, `names` are names of flows, `states` what `state_of` makes of the entry; None stands for all. `since`
        leaves out what began earlier, and `before` all but what comes after that `(started_at, run_id)`: the last one of a page
        asks for the next page. Fewer than `limit` are returned only where there are no more. Entries that can't be read are left
        out; `CorruptLog` is raised where there are no others.

        No run is missed whose `append` has returned. An index that is written before the log may name a run that isn't there, or
        that stands otherwise: who asks looks into the log.
        """


class WakeUp(msgspec.Struct, frozen=True):
    """A message to workers: look at this run, not before then. It may come twice or for nothing, but it is never lost."""

    run_id: str
    flow: str
    """The name of the run's flow: only workers that have it take the message."""
    at: datetime
    token: str
    """Tells this message from others of the same run; it stays the same when the message is shown again."""
    now: datetime
    """The store's clock when the message was set, or when it was taken."""


class SupportsWakeups(Protocol):
    """A store that keeps messages which say when to look at a run again.

    One that can't hide them from others says so by `hides_wakeups = False`: only who took a wake-up doesn't get it again within
    the visibility timeout.
    """

    hides_wakeups: bool = True
    """Whether `take_wakeups` hides what it returns from everybody."""

    @abstractmethod
    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        """Set one more wake-up for the run; durable once this returns. A run may have several, and need not be there.

        Raises `ValueError` for a time without a zone.
        """

    @abstractmethod
    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        """Return wake-ups of these flows that are due by the store's clock, those that are due longest first, at most `limit`.

        They are hidden from everybody for `visibility_timeout`, and shown again after that unless they were cleared. Two callers
        never get the same one meanwhile; fewer than `limit` may be returned while others take some.
        """

    @abstractmethod
    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        """Remove wake-ups, known by their tokens, whether they are due, hidden or neither; those that are gone do no harm."""


class SupportsWatch(Protocol):
    """A store that tells when somebody acts on a run, so that who waits need not look every two seconds."""

    @abstractmethod
    def watch(self, run_id: str) -> AsyncIterator[None]:
        """Yield once when this begins to listen, once after every reconnection, and whenever somebody acted on the run.

        That is an append by a process that does not hold the run's lock, or the end of the run's flow by anybody. A runner's own
        steps notify nobody. Several acts may be told as one, and one may be told for nothing. It ends at once on a server that
        can't tell, and goes on through an outage; who waits still looks into the store every 30 seconds.
        """


class StoreTransaction(Protocol):
    """An open transaction of a store."""

    @property
    @abstractmethod
    def connection(self) -> Any:
        """The driver's connection, inside the transaction, for SQL of one's own."""

    @abstractmethod
    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot within the transaction, and return its holder, waiting for a rival that hasn't committed."""


class SupportsTransaction(Protocol):
    """A store in which a step's own writes and its record can commit together."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open a transaction: committed at the end of the context if its record won its slot, rolled back else or on an error."""

    @abstractmethod
    def is_retryable(self, error: BaseException) -> bool:
        """Tell whether `error` out of a transaction means that all of it should be run again."""


class SupportsTransact(Protocol):
    """A store in which a step's own writes and its record can commit together, in a thread that only the store has.

    There is one writer at a time, and an `await` would keep all others waiting: so what is done is a plain function.
    """

    @abstractmethod
    async def transact(self, work: Callable[[Any], StepRecord | None]) -> StepRecord | None:
        """Call `work(connection)` in the store's thread, within a transaction that also appends the record that it returns.

        Returns the holder of the record's slot. All is committed if that is the record itself, and rolled back if another holds
        the slot, or if `work` returned None or raised. When it raises or is cancelled, look: all is there, or nothing.
        """


class Joined(Protocol):
    """A caller's own transaction, as a store may read and append in it."""

    @abstractmethod
    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot within the transaction, and return its holder, waiting for a rival that hasn't committed."""

    @abstractmethod
    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        """Return the step's newest entry as the transaction sees it."""

    @abstractmethod
    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        """Set a wake-up that is there if the transaction commits."""


class SupportsConnection(Protocol):
    """A store that can append within a transaction which the caller began on a connection of its own."""

    @abstractmethod
    def within(self, connection: Any) -> Joined:
        """Take part in the caller's transaction: what is appended is there if it commits.

        Raises `TypeError` for what is no connection of the store's driver, and `StoreError` for one outside a transaction.
        """


class OpenableStore(Store, Protocol):
    """A store that `open_store` can make: what an entry point in the group `durable_core.stores` names."""

    @classmethod
    @abstractmethod
    def from_url(cls, url: str) -> Self:
        """Make a store from its URL without connecting; options are query parameters, and an unknown one is a `StoreError`."""

    @abstractmethod
    async def __aenter__(self) -> Self:
        raise NotImplementedError

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close what this store opened, and nothing that it was given."""


def _finder(ability: Callable[..., A]) -> Callable[[Store], A | None]:
    """Make the function that returns a store if it has all methods of an ability, else None."""
    methods: frozenset[str] = ability.__abstractmethods__  # type: ignore[attr-defined]  # it is a protocol

    def find(store: Any) -> A | None:
        # A wrapper may pass abilities on through `__getattr__`, which `isinstance` with a protocol does not see.
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
