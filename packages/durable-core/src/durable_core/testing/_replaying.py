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

_STILL: Final = 5
"""Turns of the loop without a new step, after which everything that is recorded has replayed."""
_PATIENCE: Final = 0.1
"""Seconds longer, if recorded steps are left, for code that awaits something of its own between two steps."""
_PAUSE: Final = 0.005
"""Seconds between two looks within this patience."""
_NAMED: Final = 10
"""How many steps, or runs, a message names at most."""
_ENDED: Final = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}
"""The states of runs that have ended, as they follow the word *had*."""


class Difference(msgspec.Struct, frozen=True):
    """One point in which today's code and the log of a run differ."""

    what: What
    """`anew`: the code would run a step that is not recorded. `unasked`: it doesn't call a recorded step. `kind`, `arguments`:
    it calls a step as another kind, or with other arguments. `type`: a recorded value doesn't fit the type that it declares.
    `drift`: it raises `StepDrift` for another reason. `input`: it doesn't take the recorded input. `raises`: it raises an
    exception of its own. `hangs`: it neither ends nor calls a step. `ends`: it ends in another way than recorded. `log`: the log
    is damaged."""
    step_id: str | None
    """The step; None if the difference is not about one."""
    why: str
    """The difference in words. They may change in any version."""


class ReplayedRun(msgspec.Struct, frozen=True):
    """How today's code replayed the log of one run."""

    run_id: str
    flow: str
    ended: bool
    """Whether the run had ended. If not, the replay may stop at a step without an outcome."""
    replayed: int
    """How many recorded steps the code called."""
    stops_at: tuple[str, ...]
    """The steps without an outcome at which the replay stopped. There the run waits, or continues."""
    differences: tuple[Difference, ...]
    """Empty where the code fits the log."""

    @property
    def fits(self) -> bool:
        """Whether today's code can continue the run, or ends it in the same way."""
        return not self.differences

    def __str__(self) -> str:
        whys = "; ".join(each.why for each in self.differences) or "fits"
        return f"run {self.run_id!r}: {whys}"


class ReplayReport(msgspec.Struct, frozen=True):
    """What `replay_check` found in each run."""

    runs: tuple[ReplayedRun, ...]

    @property
    def misfits(self) -> tuple[ReplayedRun, ...]:
        """The runs that today's code does not fit."""
        return tuple(run for run in self.runs if not run.fits)

    def check(self) -> None:
        """Raise `AssertionError`, which names the first runs that don't fit, if there are any, or if no run was replayed."""
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
    """Replay recorded runs with today's code, and report where the two differ. No step's function is called, nothing is written.

    `run_ids` are the runs; by default all runs of the flow that the store has. The flow's own code between the steps does run,
    with all its effects.

    A replay stops at the first step without an outcome. A run that has not ended continues there, so that is no difference,
    unless the code has not called all recorded steps by then. A run that has ended must end in the same way. A wait that is not
    decided stops the replay, even if its time has passed, and so does a child that has not ended. Published progress is not
    compared.

    `expected` are the ids of steps that are meant to be new, or gone. `seconds` is how long a run's own code may take. `on_run`
    is called with each run once it was replayed.

    Raises `NotFound` for a run that isn't there, and `StoreError` if the store stays away. A damaged log is a difference of its
    run, and doesn't hide other runs.
    """
    flow = asynchronous(flow)
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a function decorated with @flow, not {flow!r}")
    check_store(store)
    if isinstance(run_ids, str) or isinstance(expected, str):
        raise TypeError(f"run_ids and expected are several ids, not one text; write [{run_ids or expected!r}]")
    limit = duration("seconds", seconds, zero=False)
    found: list[ReplayedRun] = []

    def add(run: ReplayedRun) -> None:
        found.append(run)
        if on_run is not None:
            on_run(run)

    if run_ids is not None:
        for run_id in run_ids:
            add(await _replayed(flow, store, run_id, expected, limit))
        return ReplayReport(tuple(found))
    try:
        async for status in control.runs(store, flow=flow.name):
            add(await _replayed(flow, store, status.run_id, expected, limit))
    except CorruptLog as damage:  # raised after the runs that can be read
        add(_damaged("", flow, damage))
    return ReplayReport(tuple(found))


async def _replayed(flow: Flow[..., Any], store: Store, run_id: str, expected: Collection[str], limit: float) -> ReplayedRun:
    try:
        entries = await known_run(store, run_id)
        # All entries are decoded here, so that a damaged one raises `CorruptLog` outside the flow.
        return await _Replay(flow, run_id, [*entries], expected, limit).result()
    except CorruptLog as damage:
        return _damaged(run_id, flow, damage)


def _damaged(run_id: str, flow: Flow[..., Any], damage: CorruptLog) -> ReplayedRun:
    return ReplayedRun(run_id, flow.name, False, 0, (), (Difference("log", None, str(damage)),))


class _Log(Store):
    """The log of one run, as it was read. An append stops the replay, and so does reading another run."""

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
        self._kind_drift: StepDrift | None = None
        """The newest drift of a step's kind, which is noted before the flow raises it."""
        self._is_adrift = False
        """Whether the flow ended by a `StepDrift`."""
        self._latest: Final = newest(entries).get(FLOW)

    async def result(self) -> ReplayedRun:
        """Replay the run, and return how that went."""
        flow = self._latest
        if flow is None or flow.name != self._flow.name:
            why = "it has no flow" if flow is None else f"it is a run of flow {flow.name!r}"
            return self._only("input", f"{why}, and {self._flow.name!r} is replayed")
        try:
            input = self._flow.take_recorded(flow)
        except (StepDrift, TypeError, ValueError) as error:
            return self._only("input", f"the flow can't take the recorded input any more: {error}")
        run = self._run
        await run.enter()
        try:
            run.drive(flow, None)
            raised, is_hung = await self._call(input)
            if is_hung:
                return self._only("hangs", f"the flow neither ended nor asked for a step within {self._limit:g} s")
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
                await asyncio.sleep(_PAUSE)
                waited += _PAUSE
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
        self._kind_drift = drift if what == "kind" else self._kind_drift
        self._note(what, drift.step_id, str(drift))

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
            self._note("raises", None, f"the flow's own code raised {_described(error)}")
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
                self._note("anew", step_id, f"{step_id!r} would run anew{left}")
        elif not anew:
            when = f" before the replay stops at {_names(self._stopped_at)}" if self._stopped_at else ""
            for step_id in unasked:
                self._note("unasked", step_id, f"{step_id!r} is recorded, and not asked for{when}")
        if decided(flow) and not self._differences:
            self._compare_ends(flow, verdict)

    def _park(self, error: BaseException | None) -> None:
        """Note what would park the run: a `StepDrift`, or an interrupted step, at which the replay stops."""
        for each in leaves(error):
            if isinstance(each, StepInterrupted):
                self._stopped_at[each.step_id] = None
            elif isinstance(each, StepDrift):
                self._is_adrift = True
                if each is not self._kind_drift:
                    latest = None if each.step_id is None else self._run.log.latest(each.step_id)
                    is_shown = latest is not None and latest.kind == "approval"
                    is_type = isinstance(each.__cause__, msgspec.DecodeError)
                    self._note("type" if is_type else "arguments" if is_shown else "drift", each.step_id, str(each))

    def _compare_ends(self, flow: StepRecord, verdict: Verdict | None) -> None:
        end, state = "" if verdict is None else verdict.end, state_of(flow)
        if end in ("suspended", "parked"):
            stop = _names(self._stopped_at)
            self._note("ends", None, f"the run had {_ENDED[state]}, and would stop at {stop}, which has no outcome")
        elif end != state:
            self._note("ends", None, f"the run had {_ENDED[state]}, and would have {_ENDED[end]} by today's code")
        elif state == "succeeded":
            try:
                value_of(flow, self._flow._codec)
            except StepDrift as drift:
                self._note("type", FLOW, str(drift))

    def _unasked(self) -> list[str]:
        """Return the recorded steps that were not asked for, but for those that are expected to be gone.

        A step that failed and was mended takes its flow another way: what the flow asked for in between may be left out now.
        """
        run, unasked = self._run, self._run.unasked()
        if not unasked:
            return []
        excused = {*self._expected, *_of_earlier_lives(run.log.entries)}
        return [step_id for step_id in unasked if step_id not in excused]

    def _note(self, what: What, step_id: str | None, why: str) -> None:
        self._differences.append(Difference(what, step_id, why))

    def _only(self, what: What, why: str) -> ReplayedRun:
        """Return the result of a replay that ended by this difference."""
        self._note(what, None, why)
        return self._result()

    def _result(self) -> ReplayedRun:
        run, flow = self._run, self._latest
        replayed = sum(1 for step_id in run.log if run.asked_for(step_id))
        return ReplayedRun(
            run.id, self._flow.name, decided(flow), replayed, tuple(self._stopped_at), tuple(dict.fromkeys(self._differences))
        )


def _of_earlier_lives(entries: Sequence[StepRecord]) -> Iterator[str]:
    """Yield the steps that began after another one had failed or was interrupted, and before somebody repaired that one."""
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
