"""Trying today's code on recorded runs: their logs are replayed, no step's function is called, and nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from traceback import extract_tb
from typing import Any, Final, Literal, NoReturn

import msgspec

from durable_core import control
from durable_core._log.chain import FLOW, decided, newest
from durable_core._log.known import known_run
from durable_core._running.call import ANNOTATED, prepare
from durable_core._running.driver import Replay
from durable_core._running.ending import Left, Verdict, behind, judge, leaves
from durable_core._running.outcome import value_of
from durable_core._running.run import Run
from durable_core._running.step import run_step
from durable_core._system.faces import Blocking, asynchronous
from durable_core._waiting.child import child_id
from durable_core.clock import SystemClock
from durable_core.errors import CorruptLog, RunSuspended, StepDrift, StepInterrupted, StoreError
from durable_core.flow import Flow
from durable_core.options import duration, runner_options
from durable_core.record import StepRecord
from durable_core.runner import Runner
from durable_core.store import Store, check_store
from durable_core.stores.flows import state_of

What = Literal["anew", "unasked", "kind", "arguments", "type", "drift", "input", "raises", "hangs", "ends", "log"]

_STILL: Final = 5  # turns of the loop in which no new step is asked for: then all that is recorded has replayed
_PATIENCE: Final = 0.1  # seconds for code that awaits something of its own between two steps, where a difference would be told
_TURN: Final = 0.005
_NAMED: Final = 10
_ENDED: Final = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


class Difference(msgspec.Struct, frozen=True):
    """Where today's code and the log of a run part."""

    what: What
    """`anew`: a step that is not recorded. `unasked`: a recorded one that the code does not ask for. `kind`, `arguments`, `type`:
    a step that is asked for as another kind or with other arguments, or whose value today's type does not read. `drift`: any
    other `StepDrift`. `input`: of the flow. `raises`: the flow's own code does. `hangs`: it neither ended nor asked for a step.
    `ends`: in another way than recorded. `log`: it is damaged."""
    step_id: str | None
    """The step, where it is about one."""
    why: str
    """The same in words, which may change."""


class ReplayedRun(msgspec.Struct, frozen=True):
    """What today's code made of the log of one run."""

    run_id: str
    flow: str
    ended: bool
    """Whether the run had ended; one that has not may stop at a step without an outcome."""
    replayed: int
    """How many recorded steps the code asked for."""
    stops_at: tuple[str, ...]
    """The steps without an outcome at which the replay stopped: there the run waits, or goes on."""
    differences: tuple[Difference, ...]
    """Empty where the code fits the log."""

    @property
    def fits(self) -> bool:
        """Whether today's code goes on with the run, or comes to its end, as if it had written the log itself."""
        return not self.differences

    def __str__(self) -> str:
        whys = "; ".join(each.why for each in self.differences) or "fits"
        return f"run {self.run_id!r}: {whys}"


class ReplayReport(msgspec.Struct, frozen=True):
    """What `replay_check` found, run by run."""

    runs: tuple[ReplayedRun, ...]

    @property
    def misfits(self) -> tuple[ReplayedRun, ...]:
        """The runs that today's code does not fit."""
        return tuple(run for run in self.runs if not run.fits)

    def check(self) -> None:
        """Raise `AssertionError` where a run does not fit, naming the first ones; or where no run was replayed at all."""
        if not self.runs:
            raise AssertionError("no run was replayed: is it the right store, and the right flow?")
        if misfits := self.misfits:
            more = [f"and {len(misfits) - _NAMED} more"] if len(misfits) > _NAMED else []
            raise AssertionError("\n".join([str(self), *map(str, misfits[:_NAMED]), *more]))

    def __str__(self) -> str:
        return f"{len(self.runs) - len(self.misfits)} of {len(self.runs)} runs fit"


async def replay_check(
    flow: Flow[..., Any] | Blocking[Flow[..., Any]],
    store: Store,
    run_ids: Iterable[str] | None = None,
    *,
    expected: Collection[str] = (),
    seconds: float = 10.0,
    on_run: Callable[[ReplayedRun], object] | None = None,
) -> ReplayReport:
    """Replay recorded runs with today's code, and tell where the two part. No step's function is called, nothing is written.

    `run_ids` are the runs; by default all runs of the flow that the store has. The flow's own code between the steps does run,
    with what it does to the world outside.

    A replay stops at the first step without an outcome. For a run that has not ended, that is where it goes on, and no
    difference, unless recorded steps are left that the code has not asked for by then. A run that has ended must come to its end
    in the same way. A wait that is not decided stops the replay, whether its time has passed or not, and so does a child that has
    not ended; what is published is passed over.

    `expected` are the ids of steps that are meant to be new, or gone. `seconds` is how long a run's own code may take. `on_run`
    is called with each run as it was replayed.

    Raises `NotFound` for a run that isn't there, `StoreError` if the store stays away. A log that is damaged is a difference of
    its run, and hides no other.
    """
    flow = asynchronous(flow)
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a function decorated with @flow, not {flow!r}")
    check_store(store)
    if isinstance(run_ids, str) or isinstance(expected, str):
        raise TypeError(f"run_ids and expected are several ids, not one text; write [{run_ids or expected!r}]")
    limit = duration("seconds", seconds, zero=False)
    found: list[ReplayedRun] = []

    def took(run: ReplayedRun) -> None:
        found.append(run)
        if on_run is not None:
            on_run(run)

    if run_ids is not None:
        for run_id in run_ids:
            took(await _replayed(flow, store, run_id, expected, limit))
        return ReplayReport(tuple(found))
    try:
        async for status in control.runs(store, flow=flow.name):
            took(await _replayed(flow, store, status.run_id, expected, limit))
    except CorruptLog as damage:  # told after the runs that can be read
        took(ReplayedRun("", flow.name, False, 0, (), (Difference("log", None, str(damage)),)))
    return ReplayReport(tuple(found))


async def _replayed(flow: Flow[..., Any], store: Store, run_id: str, expected: Collection[str], limit: float) -> ReplayedRun:
    try:
        entries = await known_run(store, run_id)
        # Each is decoded here, so that one that is damaged is told as what it is.
        return await _Replay(flow, run_id, [*entries], expected, limit).look()
    except CorruptLog as damage:
        return ReplayedRun(run_id, flow.name, False, 0, (), (Difference("log", None, str(damage)),))


class _Log(Store):
    """The log of one run, as it was read. Whatever would be written to it stops the replay, and so does a look at other runs."""

    def __init__(self, run_id: str, entries: Sequence[StepRecord]) -> None:
        self._run_id: Final = run_id
        self._entries: Final = entries
        self.run: Run
        self.replay: _Replay

    def __repr__(self) -> str:
        return f"<the log of run {self._run_id!r}, replayed>"

    async def append(self, record: StepRecord) -> StepRecord:
        if record.run_id != self._run_id:
            await self._stop_for(record.run_id)
        if record.kind == "published":
            return record
        return await self.replay.stop(self.run, record.step_id)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        if run_id != self._run_id:
            await self._stop_for(run_id)
        latest = newest(self._entries).get(step_id)
        if latest is not None and not decided(latest) and not step_id.startswith("$"):
            await self.replay.stop(self.run, step_id)
        return latest

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        if run_id != self._run_id:
            await self._stop_for(run_id)
        return self._entries

    async def clear(self, run_id: str) -> None:
        raise StoreError(f"run {run_id!r} is only replayed, and can't be cleared")

    async def _stop_for(self, run_id: str) -> NoReturn:
        """Stop at the step that has this run as its child."""
        steps = (step_id for step_id in self.run.calls if child_id(self._run_id, step_id) == run_id)
        await self.replay.stop(self.run, next(steps, run_id))


class _Replayer(Runner):
    """A runner whose transactions replay on any store."""

    def transaction(
        self, step_id: str, fn: Callable[..., Any], *args: Any, returns: Any = ANNOTATED, **options: Any
    ) -> Coroutine[Any, Any, Any]:
        call = prepare(self._run, self._scoped(step_id), fn, args, returns, self._policy, {**options})
        return run_step(self._run, call)


class _Replay(Replay):
    """The replay of one run."""

    def __init__(
        self, flow: Flow[..., Any], run_id: str, entries: Sequence[StepRecord], expected: Collection[str], limit: float
    ) -> None:
        self._flow: Final = flow
        self._run_id: Final = run_id
        self._expected: Final = frozenset(expected)
        self._limit: Final = limit
        log = _Log(run_id, entries)
        options = {**runner_options(flow._options), "on_event": None, "on_drift": "warn", "wait_limit": 0, "lock_wait": 0}
        self._runner: Final = _Replayer(log, run_id, **{**options, "clock": SystemClock()})  # type: ignore[arg-type]
        self._run: Final = self._runner._run
        self._run.replay = log.replay = self
        log.run = self._run
        self._differences: Final[list[Difference]] = []
        self._stopped_at: Final[dict[str, None]] = {}
        self._stopping: Final[set[asyncio.Task[Any] | None]] = set()
        self._before: Final = asyncio.all_tasks()
        self._told_kind: StepDrift | None = None
        self._is_adrift = False
        """Whether drift has kept the flow from going on."""
        self._latest: Final = newest(entries).get(FLOW)

    async def look(self) -> ReplayedRun:
        """Replay the run, and tell what came of it."""
        flow = self._latest
        if flow is None or flow.name != self._flow.name:
            why = "it has no flow" if flow is None else f"it is a run of flow {flow.name!r}"
            return self._told("input", f"{why}, and {self._flow.name!r} is replayed")
        try:
            input = self._flow.take_recorded(flow)
        except (StepDrift, TypeError, ValueError) as error:
            return self._told("input", f"the flow can't take the recorded input any more: {error}")
        run = self._run
        await run.enter()
        try:
            run.drive(flow, None)
            raised, is_hung = await self._call(input)
            if is_hung:
                return self._told("hangs", f"the flow neither ended nor asked for a step within {self._limit:g} s")
            self._judge(flow, raised)
        finally:
            await run.leave(cancel=True)
        return self._result()

    async def _call(self, input: Any) -> tuple[BaseException | None, bool]:
        """Call the flow's function; return what it raised, and whether it hung."""

        async def call() -> SystemExit | None:
            try:
                returned = await self._flow._called(self._runner, **input)
            except SystemExit as left:  # which would end the loop, and all that is checked
                return left
            if run.suspended is None and not run.told:
                self._flow._codec.record(returned)
            return None

        run = self._run
        run.outside = frozenset(map(id, behind(None)))
        task = asyncio.create_task(call())
        await asyncio.wait([task], timeout=self._limit)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)
            return None, not self._stopped_at
        await run.idle()  # steps that go on in tasks of the flow's own
        try:
            return task.exception() or task.result(), False
        except asyncio.CancelledError as cancelled:
            return cancelled, False

    async def stop(self, run: Run, step_id: str) -> NoReturn:
        """Suspend the run before a step that has no outcome, once all that is recorded has replayed."""
        self._stopping.add(asyncio.current_task())
        still, known, waited = 0, -1, 0.0
        while still < _STILL:
            still = still + 1 if known == len(run.calls) else 0
            known = len(run.calls)
            await run.turn()
            if still == _STILL and waited < _PATIENCE and self._goes_on and self._unasked():
                await asyncio.sleep(_TURN)
                waited += _TURN
                still -= 1
        self._stopped_at[step_id] = None
        suspended = RunSuspended(run.id, waiting_for=(*self._stopped_at,), until=None)
        run.suspended = run.suspended or suspended
        raise suspended

    @property
    def _goes_on(self) -> bool:
        """Whether a task that began with the replay, and has not stopped, may ask for another step."""
        return bool(asyncio.all_tasks() - self._before - self._stopping)

    def drifts(self, what: Literal["kind", "arguments"], drift: StepDrift) -> None:
        """Take note that a step is asked for as another kind, or with other arguments, than was recorded."""
        self._told_kind = drift if what == "kind" else self._told_kind
        self._tell(what, drift.step_id, str(drift))

    def _judge(self, flow: StepRecord, error: BaseException | None) -> None:
        """Compare how the replay ended with what is recorded."""
        run = self._run
        verdict = judge(
            Left(
                run_id=run.id,
                error=error,
                is_own=isinstance(error, asyncio.CancelledError),
                suspended=run.suspended is not None,
                told=run.told,
                undoing=run.undoing,
                fails_on=self._flow._fails_on,
                answers=run.answers,
            )
        )
        end = "crashed" if verdict is None else verdict.end
        if end == "crashed":
            assert error is not None
            self._tell("raises", None, f"the flow's own code raised {_described(error)}")
        elif end == "parked":
            self._park(error)
        if run.suspended is not None:
            self._stopped_at.update(dict.fromkeys(run.suspended.waiting_for))
        anew = [step_id for step_id in self._stopped_at if run.log.latest(step_id) is None]
        if end == "crashed" or self._is_adrift or self._expected.intersection(anew):
            return
        unasked = self._unasked()
        if anew and (unasked or decided(flow)):
            left = f", before what is recorded: {_names(unasked)}" if unasked else ", and the run had ended without it"
            for step_id in anew:
                self._tell("anew", step_id, f"{step_id!r} would run anew{left}")
        elif not anew:
            when = f" before the replay stops at {_names(self._stopped_at)}" if self._stopped_at else ""
            for step_id in unasked:
                self._tell("unasked", step_id, f"{step_id!r} is recorded, and not asked for{when}")
        if decided(flow) and not self._differences:
            self._compare_ends(flow, verdict)

    def _park(self, error: BaseException | None) -> None:
        """Take what would park the run: the drift of a step, or an interrupted step, which waits for somebody."""
        for each in leaves(error):
            if isinstance(each, StepInterrupted):
                self._stopped_at[each.step_id] = None
            elif isinstance(each, StepDrift):
                self._is_adrift = True
                if each is not self._told_kind:
                    latest = None if each.step_id is None else self._run.log.latest(each.step_id)
                    is_shown = latest is not None and latest.kind == "approval"
                    is_type = isinstance(each.__cause__, msgspec.DecodeError)
                    self._tell("type" if is_type else "arguments" if is_shown else "drift", each.step_id, str(each))

    def _compare_ends(self, flow: StepRecord, verdict: Verdict | None) -> None:
        end, state = "" if verdict is None else verdict.end, state_of(flow)
        if end in ("suspended", "parked"):
            stop = _names(self._stopped_at)
            self._tell("ends", None, f"the run had {_ENDED[state]}, and would stop at {stop}, which has no outcome")
        elif end != state:
            self._tell("ends", None, f"the run had {_ENDED[state]}, and would have {_ENDED[end]} by today's code")
        elif state == "succeeded":
            try:
                value_of(flow, self._flow._codec)
            except StepDrift as drift:
                self._tell("type", FLOW, str(drift))

    def _unasked(self) -> list[str]:
        """Return the recorded steps that were not asked for, but for those that are expected to be gone.

        A step that failed and was mended takes its flow another way: what the flow asked for in between may be left out now.
        """
        run, unasked = self._run, self._run.unasked()
        if not unasked:
            return []
        excused = {*self._expected, *_of_earlier_lives(run.log.entries)}
        return [step_id for step_id in unasked if step_id not in excused]

    def _tell(self, what: What, step_id: str | None, why: str) -> None:
        self._differences.append(Difference(what, step_id, why))

    def _told(self, what: What, why: str) -> ReplayedRun:
        self._tell(what, None, why)
        return self._result()

    def _result(self) -> ReplayedRun:
        run, flow = self._run, self._latest
        replayed = sum(1 for step_id in run.log if run.asked_for(step_id))
        return ReplayedRun(
            run.id, self._flow.name, decided(flow), replayed, tuple(self._stopped_at), tuple(dict.fromkeys(self._differences))
        )


def _of_earlier_lives(entries: Sequence[StepRecord]) -> Iterator[str]:
    """Yield the steps that began after another had failed or was interrupted, and before somebody mended that one."""
    began: dict[str, int] = {}
    before: dict[str, tuple[str, int]] = {}
    for at, record in enumerate(entries):
        step_id = record.step_id
        began.setdefault(step_id, at)
        status, since = before.get(step_id, ("", at))
        if step_id != FLOW and (status == "failure" or record.status == "reopened"):
            yield from (each for each, begun in began.items() if begun > since)
        before[step_id] = record.status, at


def _described(error: BaseException) -> str:
    """Return an exception in words, with the line that raised it."""
    frames = extract_tb(error.__traceback__)
    where = f", in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _names(step_ids: Iterable[str]) -> str:
    names = [*step_ids]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*map(repr, names[:_NAMED]), *more])
