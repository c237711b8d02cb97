"""A flow: a function with a name, whose input and outcome are recorded with its steps."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import update_wrapper
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, Unpack, overload

from ._calls.parameters import Input, Parameters
from ._log.chain import FLOW, decided, successor
from ._running.ending import failed_steps, is_failed_step, keeps_from_going_on
from ._running.outcome import failed_before, to_retry, value_of
from ._running.run import Run
from ._system.waits import cancellations
from ._values.returns import codec_of
from .errors import CorruptLog, StepDrift, StepFailed, UnrecordableValue
from .options import RunnerOptions, unknown_option
from .record import StepError, StepRecord
from .runner import Runner
from .store import Store

_RETRY_THE_STEP: Final = (
    "find the step that failed in the message above, and reopen it with durable_core.control.retry or resolve"
)

P = ParamSpec("P")
T = TypeVar("T")


class Flow(Generic[P, T]):
    """A flow function; call it with a runner of your own, or let `run` make one and record how the run ends."""

    def __init__(self, fn: Callable[Concatenate[Runner, P], Awaitable[T]], name: str | None, options: RunnerOptions) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"a flow is an async function (runner, **input), not {fn!r}")
        self.name: Final = name or fn.__name__
        self._parameters: Final = Parameters(fn, self.name)
        self._fn: Final[Callable[..., Awaitable[T]]] = fn
        self._options: Final = options
        self._codec: Final = codec_of(fn)
        update_wrapper(self, fn)

    def __repr__(self) -> str:
        return f"<flow {self.name!r}>"

    def __call__(self, runner: Runner, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        if not hasattr(runner, "step"):
            raise TypeError(f"flow {self.name!r} is called with a Runner, not {runner!r}; or write .run(store, run_id=…)")
        return self._fn(runner, *args, **kwargs)

    async def run(self, store: Store, run_id: str, *args: P.args, **input: P.kwargs) -> T:
        """Run the flow as `run_id`, resume it, or return its recorded outcome.

        Input may be given as it is, or as the JSON that was recorded of it; the function gets it as its parameters are annotated.
        The run's lock is held meanwhile. Raises `StepFailed`, now and on every later run, if the flow raised; `StepDrift` if the
        run was started with another input or another flow; `RunBusy` if another runner works on it. What keeps a run from going
        on, such as a lost lock, a cancellation or a suspension, is raised and not recorded: run it again.
        """
        if args:
            raise TypeError(f"flow {self.name!r} takes its input by name")
        taken = self._parameters.read(input)
        async with Runner(store, run_id, **self._options) as runner:
            record = await self._begin(runner._run, taken)
            note = record.notes
            if not self._parameters.is_same(taken, note):
                raise StepDrift(
                    f"run {run_id!r} of flow {self.name!r} was started with other input, {note.get('input')!r}, not"
                    f" {taken.note()['input']!r}; choose another run id for new input"
                )
            if not decided(record):
                record = await self._outcome(runner, record, self._parameters.values(taken, note))
            if record.status == "failure":
                failure = _failure(runner._run, record)
                old = failure is record and record.error is not None and record.error.matches(StepFailed)
                raise failed_before(failure, _RETRY_THE_STEP if old else to_retry(failure))
            return value_of(record, self._codec)  # type: ignore[no-any-return]  # the codec is that of T

    async def _begin(self, run: Run, input: Input) -> StepRecord:
        record = run.log.latest(FLOW)
        if record is None:
            await run.begin()
            now = run.clock.now()
            record = await run.log.claim(
                StepRecord(
                    run_id=run.id,
                    step_id=FLOW,
                    status="started",
                    kind="flow",
                    name=self.name,
                    note=input.note(),
                    started_at=now,
                    ended_at=now,
                    fingerprint=input.fingerprint,
                )
            )
        if not all(isinstance(record.notes.get(name, {}), dict) for name in ("input", "defaults")):
            raise CorruptLog(
                f"the note of '$flow' of run {run.id!r}, revision {record.revision}, holds no input: {record.note!r}"
            )
        if record.name != self.name:
            raise StepDrift(f"run {run.id!r} was started by flow {record.name!r}, not {self.name!r}; choose another run id")
        return record

    async def _outcome(self, runner: Runner, record: StepRecord, values: dict[str, Any]) -> StepRecord:
        run, clock = runner._run, runner._run.clock
        started_at, began = clock.now(), clock.monotonic()
        error: BaseException | None = None
        result: bytes | None = None
        value: Any = None
        before = cancellations()
        try:
            returned = await self._fn(runner, **values)
        except asyncio.CancelledError as cancellation:
            if cancellations() > before:
                raise
            error = cancellation  # of a task that the flow awaited and somebody else cancelled
        except Exception as failure:
            if keeps_from_going_on(failure):
                raise  # and says nothing of how the run ends
            error = failure
        else:
            try:
                result, value = self._codec.record(returned)
            except UnrecordableValue as refusal:
                error = refusal
        while not await run.idle():  # a step that was left running in a task may still fail, or never be recorded
            pass
        if run.log.kept:
            await run.log.settle()
        failed = [] if error is None else [each for each in failed_steps(error, run.id) if await _still_failed(run, each)]
        if not failed:  # the flow may have swallowed what kept it from going on
            await run.ready()
            await run.begin()
            if error is not None and is_failed_step(error, run.id):
                raise error  # it was mended meanwhile: the run goes on when it is run again
        run.lock.check()
        if error is None:
            _tell_unasked(run)
        outcome = successor(
            record,
            clock.now(),
            status="success" if error is None else "failure",
            result=result,
            error=None if error is None else failed[0].error if failed else StepError.from_exception(error),
            note={**record.notes, "failed": [each.step_id for each in failed]} if failed else record.note,
            started_at=started_at,
            ended_at=started_at + timedelta(seconds=clock.monotonic() - began),
        )
        recorded = await run.log.outcome(outcome, value)
        if recorded.id == outcome.id and error is not None:
            raise StepFailed(_failure(run, recorded)) from error
        return recorded


def _failure(run: Run, record: StepRecord) -> StepRecord:
    """Return what a flow failed by: the first step whose failure left it, or its own code."""
    names = record.notes.get("failed")
    step = run.log.latest(names[0]) if isinstance(names, list) and names and isinstance(names[0], str) else None
    return step if step is not None and step.status == "failure" else record


async def _still_failed(run: Run, failed: StepFailed) -> bool:
    """Look once more at a failure that is about to end the run: somebody may have mended it."""
    newest = await run.look(failed.step_id)
    return newest is None or newest.id == failed.record.id


def _tell_unasked(run: Run) -> None:
    """Tell of recorded steps that the flow never asked for: they were renamed, or are not there any more."""
    if run.log.reopened or any((step := run.log.latest(step_id)) and step.status == "failure" for step_id in run.log):
        return  # a failure, or its mending, may take a flow another way
    unasked = [step_id for step_id in run.log if step_id not in run.calls and not step_id.startswith("$")]
    # An event may be sent whether anybody waits for it or not.
    unasked = [step_id for step_id in unasked if (step := run.log.latest(step_id)) and (step.kind != "event" or step.revision)]
    if unasked:
        run.drifted(
            f"run {run.id!r} recorded steps that its flow did not ask for: {', '.join(map(repr, unasked[:10]))}; were they"
            " renamed, or taken out? A renamed step runs anew under its new id",
            stacklevel=5,
        )


@overload
def flow(fn: Callable[Concatenate[Runner, P], Awaitable[T]], /) -> Flow[P, T]: ...
@overload
def flow(
    *, name: str | None = None, **options: Unpack[RunnerOptions]
) -> Callable[[Callable[Concatenate[Runner, P], Awaitable[T]]], Flow[P, T]]: ...
def flow(fn: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Make a flow of an async function `(runner, **input)`; `name` is the function's unless given, options are the runner's.

    `await onboard.run(store, run_id="user-42", email=...)` records the name and the input, runs the function under the run's
    lock, and records its outcome, so that a store can tell which runs have ended.
    """
    for option in options:
        if option not in RunnerOptions.__annotations__:
            raise unknown_option(option, ("name", *RunnerOptions.__annotations__))
    if fn is not None:
        return Flow(fn, name, {})
    return lambda function: Flow(function, name, options)  # type: ignore[arg-type]  # checked when a runner is made
