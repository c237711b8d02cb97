"""A flow: a function with a name, whose input and outcome are recorded with its steps."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from copy import copy
from datetime import datetime, timedelta
from functools import partial, update_wrapper
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, Unpack, overload

from ._calls.parameters import Input, Parameters
from ._log.cancelling import cancellation
from ._log.chain import CANCEL, FLOW, decided, new_entry
from ._log.news import tell
from ._log.wakeups import asking
from ._running.driver import Limit
from ._running.driving import Standing, Work, begin, drive
from ._running.outcome import value_of
from ._running.run import Run
from ._system.ids import check_id, check_name, check_own_id
from ._values.returns import codec_of
from ._waiting.child import end_children
from ._waiting.wait import moment
from .clock import Clock, SystemClock
from .context import driven_run, flow_of
from .errors import CorruptLog, DurableError, StepDrift
from .events import StepEvent, ask_to_carry
from .options import FlowOptions, RunnerOptions, duration, runner_options, unknown_option
from .record import StepRecord
from .runner import Runner
from .store import Store, check_store, connection_of, wakeups_of

P = ParamSpec("P")
T = TypeVar("T")


class Flow(Generic[P, T]):
    """A flow function. Call it with your own runner, or let `run` make one and record how the run ends."""

    def __init__(self, fn: Callable[Concatenate[Runner, P], Awaitable[T]], name: str | None, options: FlowOptions) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"a flow must be an async function (runner, **input), not {fn!r}")
        self._timeout, self._fails_on, self._concurrency = _checked(options)
        self.name: Final = check_id("the name of a flow", name or name_of(fn))  # recorded, and compared with what is recorded
        self._parameters: Final = Parameters(fn, self.name)
        self._fn: Callable[..., Awaitable[T]] = fn
        self._options: Final = options
        self._codec: Final = codec_of(fn)
        update_wrapper(self, fn)

    def __repr__(self) -> str:
        return f"<flow {self.name!r}>"

    def __get__(self, instance: object, owner: type | None = None) -> Flow[Any, T]:
        """Return the flow as a method of `instance`, as functions do."""
        return self if instance is None else Flow(self._fn.__get__(instance), self.name, self._options)

    def __call__(self, runner: Runner, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        if not hasattr(runner, "step"):
            raise TypeError(f"flow {self.name!r} must be called with a Runner, not {runner!r}; or write .run(store, run_id=…)")
        return self._called(runner, *args, **kwargs)

    async def _called(self, runner: Runner, *args: P.args, **kwargs: P.kwargs) -> T:
        with flow_of(runner):
            return await self._fn(runner, *args, **kwargs)

    def options(self, **options: Unpack[FlowOptions]) -> Flow[P, T]:
        """Return the same flow with other options, such as `onboard.options(wait_limit=0)`. Options that you leave out stay."""
        return Flow(self._fn, self.name, {**self._options, **options})

    async def run(self, store: Store, run_id: str, *args: P.args, **input: P.kwargs) -> T:
        """Run the flow as `run_id`, resume it, or return its recorded outcome.

        Input can be the values themselves, or the JSON that was recorded of them; the function gets it decoded by its
        annotations. Without input, a run that was begun or started gets the recorded input. The run's lock is held meanwhile.

        Raises `StepFailed`, now and on every later run, if the run failed: a step's failure left the flow, or an exception left
        it that `fails_on` names or that the flow had answered with a step. Raises it too if the run was cancelled: then the error
        matches `RunCancelled`. Any other exception of the flow's own code is raised as it is and recorded as a crash: fix the
        code and run it again, and the run continues. Raises `RunSuspended` for a run that waits, `StepInterrupted` or `StepDrift`
        for one that somebody has to repair, `StepDrift` if the run was begun with another input or another flow, and `RunBusy` if
        another runner works on it. An exception that says nothing about the run, such as a lost lock, is not recorded: run it
        again.
        """
        if args:
            raise TypeError(f"flow {self.name!r} takes its input by name")
        if (outer := driven_run()) is not None:
            raise DurableError(
                f"flow {self.name!r} was run inside run {outer!r}, which would not record it; write"
                f" `await runner.flow(step_id, {self.name}, …)`, with wait=False to continue without waiting for it"
            )
        taken = self._parameters.read(input) if input else None
        async with Runner(store, run_id, **runner_options(self._options)) as runner:
            standing = await self._stand(runner, taken, {})
            if standing.error is not None:
                raise standing.error
            value: T = value_of(standing.record, self._codec)
            return value

    async def start(
        self,
        store: Store,
        run_id: str,
        at: datetime | timedelta | float | None = None,
        connection: Any = None,
        *args: P.args,
        **input: P.kwargs,
    ) -> StepRecord:
        """Start a run without running it here: record its input and return the entry of `$flow` that holds it.

        `run` takes it up. A worker does so no earlier than `at`: an aware datetime, or seconds or a timedelta from now. The same
        id and input again change nothing; other input raises `StepDrift`. With `connection`, a connection of the store's driver
        inside a transaction, the run exists if that commits. Raises `TypeError` on a store that can't do this.
        """
        if args:
            raise TypeError(f"flow {self.name!r} takes its input by name")
        check_store(store)
        check_own_id("run_id", run_id)
        clock = self._options.get("clock") or SystemClock()
        until = None if at is None else moment(clock, "at", at)
        return await self._ask(store, run_id, self._parameters.read(input), clock, until, connection, {})

    async def _ask(
        self,
        store: Store,
        run_id: str,
        taken: Input,
        clock: Clock,
        until: datetime | None,
        connection: Any,
        lineage: Mapping[str, Any],
    ) -> StepRecord:
        append, get, wakeups = store.append, store.get, wakeups_of(store)
        now, at = clock.now(), until or clock.now()
        if connection is not None:
            joins = connection_of(store)
            if joins is None:
                raise TypeError(f"{store!r} can't join a transaction of the caller: leave out connection=")
            within = joins.within(connection)
            append, get, wakeups = within.append, within.get, None
            if wakeups_of(store) is not None:
                await within.set_wakeup(run_id, self.name, at)
        note = {**taken.note(), "asked": {"at": now.isoformat()}, **lineage}
        if (on_event := self._options.get("on_event")) is not None:
            event = StepEvent(type="run:ask", run_id=run_id, step_id=FLOW, name=self.name, attempt=1, at=now)
            note |= {"carried": carried} if (carried := await ask_to_carry(on_event, event)) else {}
        fields = {"kind": "flow", "name": self.name, "note": note, "until": until, "fingerprint": taken.fingerprint}
        asked = new_entry(run_id, FLOW, now, status="waiting", **fields)
        async with asking(wakeups, run_id, self.name, now, at):
            newest = await get(run_id, FLOW) or await append(asked)
            self._check_known(newest, taken, lineage)
            if connection is None and newest.id == asked.id and (stop := await get(run_id, CANCEL)):
                reason, by = stop.notes.get("reason"), stop.notes.get("by")
                if (request := cancellation(newest, clock.now(), reason, by)) is not None:
                    newest = await append(request)
        tell(run_id)
        return newest

    def _called_by(self, fn: Callable[..., Awaitable[T]]) -> Flow[P, T]:
        """Return the same flow with another way to call its function."""
        flow = copy(self)
        flow._fn = fn
        return flow

    def named(self, name: str) -> Flow[P, T]:
        """Return the same flow under another name, such as the one that it had when a run began."""
        return self if name == self.name else Flow(self._fn, name, self._options)

    def take_recorded(self, flow: StepRecord | None) -> Mapping[str, Any]:
        """Return what the function is called with in a run, given as an entry of its flow. Raises where it can't take that."""
        note = {} if flow is None else _note_of(flow)
        return self._parameters.values(self._parameters.read(note.get("input", {})), note)

    def limit(self, flow: StepRecord) -> Limit | None:
        """Return the limit that `concurrency=` sets for a run, given as an entry of its flow. Raises what its function raises."""
        return self._limit(flow.notes.get("input") or {})

    def _limit(self, input: Mapping[str, Any]) -> Limit | None:
        limit = self._concurrency
        if callable(limit):
            limit = limit(**self._parameters.values(self._parameters.read(input), {}))
        return None if limit is None else _checked_limit(limit, f"concurrency= of flow {self.name!r}")

    def _take(self, input: Mapping[str, Any]) -> Input:
        """Check input, and return it as it is recorded. Raises `TypeError` for what the function doesn't take."""
        return self._parameters.read(input)

    async def _stand_as_child(self, parent: Run, run_id: str, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> Standing:
        """Drive a child of another run until it ends, waits or stops, and return how it stands."""
        inherited: RunnerOptions = {"clock": parent.clock, "on_event": parent.on_event}
        options: RunnerOptions = {**inherited, **runner_options(self._options), "wait_limit": 0}
        taken = self._parameters.read(input) if input else None
        limit = self._limit(input)
        new = limit is not None and limit[0] not in parent.limits
        async with (
            parent.driver.limited(parent.store, limit) if limit and new else nullcontext(),
            Runner(parent.store, run_id, **options) as runner,
        ):
            run = runner._run
            run.driver, run.is_child, run.limits = parent.driver, True, parent.limits | ({limit[0]} if limit else set())
            standing = await self._stand(runner, taken, lineage)
            run.suspended = None  # its parent waits for it
            return standing

    async def _ask_as_child(self, parent: Run, run_id: str, input: Mapping[str, Any], lineage: Mapping[str, Any]) -> StepRecord:
        """Ask for a child of another run, without driving it."""
        heard = self if "on_event" in self._options else self.options(on_event=parent.on_event)
        return await heard._ask(parent.store, run_id, self._parameters.read(input), parent.clock, None, None, lineage)

    def _check_known(self, record: StepRecord, taken: Input | None, lineage: Mapping[str, Any]) -> None:
        """Raise `StepDrift` where the run is another flow's or another run's child, or was begun with other input."""
        note = _note_of(record)
        if record.name != self.name:
            raise StepDrift(
                f"run {record.run_id!r} was started by flow {record.name!r}, not {self.name!r}; choose another run id"
            )
        if lineage and note.get("parent") != lineage["parent"]:
            raise StepDrift(
                f"run {record.run_id!r} already exists and is not a child of step {lineage['parent']['step']!r} of run"
                f" {lineage['parent']['run']!r}; give the step another id"
            )
        if taken is not None and not self._parameters.is_same(taken, note):
            raise StepDrift(
                f"run {record.run_id!r} of flow {self.name!r} was started with other input, {note.get('input')!r}, not"
                f" {taken.note()['input']!r}; choose another run id for new input"
            )

    async def _stand(self, runner: Runner, taken: Input | None, lineage: Mapping[str, Any]) -> Standing:
        """Begin the run if nobody has, drive it, and return how it stands then."""
        run = runner._run
        record = run.log.latest(FLOW)
        if record is None:
            run.lock.check()
            taken = taken or self._parameters.read({})
            note = {**taken.note(), **lineage}
            record = await begin(run, self.name, note, taken.fingerprint, self._timeout)
        self._check_known(record, taken, lineage)

        async def call() -> Any:
            with flow_of(runner):
                value = await self._fn(runner, **values)
            if not run.told and run.suspended is None:
                _tell_unasked(run)
            return value

        if not decided(record):
            taken = taken or self._parameters.read(record.notes.get("input", {}))
            values = self._parameters.values(taken, record.notes)
        end = partial(end_children, run)
        return await drive(run, record, Work(call, self._codec, self._fails_on, self._timeout, end))


def name_of(fn: Callable[..., Any]) -> str:
    """Return a function's own name. Raises `TypeError` where it has none, as a partial."""
    name = getattr(fn, "__name__", None)
    if not isinstance(name, str):
        raise TypeError(f"flow {fn!r} has no name: give it one, as in flow(name='refund')(fn)")
    return name


def _note_of(flow: StepRecord) -> Mapping[str, Any]:
    """Return the note of an entry of a flow. Raises `CorruptLog` where it can't hold the flow's input."""
    if not all(isinstance(flow.notes.get(name, {}), dict) for name in ("input", "defaults")):
        raise CorruptLog(
            f"the note of '$flow' of run {flow.run_id!r}, revision {flow.revision}, contains no input: {flow.note!r}"
        )
    return flow.notes


def _tell_unasked(run: Run) -> None:
    """Tell of recorded steps that the flow never asked for: they were renamed, or are not there any more."""
    if run.log.reopened or any((step := run.log.latest(step_id)) and step.status == "failure" for step_id in run.log):
        return  # a failure, or its mending, may take a flow another way
    if unasked := run.unasked():
        run.tell_drift(
            f"run {run.id!r} has recorded steps that its flow did not call: {', '.join(map(repr, unasked[:10]))}; were they"
            " renamed or removed? A renamed step runs again under its new id",
            stacklevel=5,
        )


def _checked(options: FlowOptions) -> tuple[float | None, tuple[type[BaseException], ...], Any]:
    """Return the options of a flow itself; those of its runner are checked when that is made, but for their names."""
    for option in options:
        if option not in FlowOptions.__annotations__:
            raise unknown_option(option, ("name", *FlowOptions.__annotations__))
    timeout, fails_on = options.get("timeout"), options.get("fails_on", ())
    kinds = fails_on if isinstance(fails_on, tuple) else (fails_on,)
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise TypeError(f"fails_on must be a subclass of Exception or a tuple of them, not {fails_on!r}")
    concurrency = options.get("concurrency")
    if concurrency is not None and not callable(concurrency):
        _checked_limit(concurrency, "concurrency")
    return None if timeout is None else duration("timeout", timeout, zero=False), kinds, concurrency


def _checked_limit(limit: object, what: str) -> Limit:
    """Return a name and a number. Raises `TypeError` or `ValueError` for what is none."""
    match limit:
        case (str(name), int(number)) if isinstance(limit, tuple) and not isinstance(number, bool):
            if number < 1:
                raise ValueError(f"{what} must allow at least one run, not {number}: {limit!r}")
            return check_name(f"the name in {what}", name), number
    raise TypeError(f'{what} must give a name and a number, such as ("pdf", 4), or a function of the input, not {limit!r}')


@overload
def flow(fn: Callable[Concatenate[Runner, P], Awaitable[T]], /) -> Flow[P, T]: ...
@overload
def flow(
    *, name: str | None = None, **options: Unpack[FlowOptions]
) -> Callable[[Callable[Concatenate[Runner, P], Awaitable[T]]], Flow[P, T]]: ...
def flow(fn: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Make a flow from an async function `(runner, **input)`. `name` is the function's by default; options are the runner's.

    `await onboard.run(store, run_id="user-42", email=...)` records the name and the input, calls the function under the run's
    lock, and records its outcome, so that a store knows which runs have ended. Call a method on its object:
    `await Shop(10).order.run(store, run_id=...)`.

    A flow has three more options. `timeout` is seconds, or a timedelta, from the run's first start; after that the run is
    cancelled. `concurrency` is a name and how many runs with that name workers run at the same time, or a function that returns
    those for a run's input, which it gets by name. `fails_on` lists the exception types that end the run as failed when they
    leave the function. Without it, an exception of the function's own code is a crash: when you run it again, the run continues
    from what is recorded.
    """
    _checked(options)  # type: ignore[arg-type]  # whatever it is
    if fn is not None:
        return Flow(fn, name, {})
    return lambda function: Flow(function, name, options)  # type: ignore[arg-type]  # checked when a runner is made
