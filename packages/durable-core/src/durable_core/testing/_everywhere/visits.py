"""Visits of a run, each in a process of its own, until it ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any, Final, NamedTuple

from durable_core._log.chain import FLOW, decided
from durable_core._log.notes import children_of, waits_of
from durable_core.errors import LockLost, ResultNotRecorded, RunBusy, StepDrift, StoreError
from durable_core.flow import Flow
from durable_core.options import runner_options
from durable_core.record import StepRecord
from durable_core.runner import Runner
from durable_core.store import Store
from durable_core.stores.flows import FlowState, state_of
from durable_core.stores.memory import MemoryStore
from durable_core.testing._samples import OpenStore

from .moments import JumpingClock, Moments, Step, Tell, WatchedStore, WatchingDriver

Decide = Callable[[Store, StepRecord], Awaitable[object]]
_LOCK_SECONDS: Final = 60  # for which a process waits until the lease of a killed one has ended
_MOST_VISITS: Final = 1_000
_TRIES: Final = 3  # of a run whose visit was hindered: the machine was too busy to renew a lease, or the store was away
_DECIDED_BY_OTHERS: Final = ("approval", "event", "flow")
"""Kinds of steps that `decide` is called for."""


class Job(NamedTuple):
    """What all runs of a flow share."""

    flow: Flow[Any, Any]
    input: Callable[[str], Mapping[str, Any]]
    open_store: OpenStore
    decide: Decide | None
    effects: Callable[[str], Iterable[Hashable]] | None
    timeout: float


class Plan(NamedTuple):
    """One run, and where its process is killed."""

    run_id: str
    whole: bool = False
    """Whether the run stays in one process while it waits. Otherwise it is suspended at each wait."""
    visit: int = 0
    """The number of the visit in which the process is killed, from 0."""
    moment: str | None = None
    """The moment of that visit at which it is killed; None for not at all."""

    def __str__(self) -> str:
        if self.moment is None:
            return "not killed, once more" if self.whole else "not killed, suspended at each wait"
        visit = f", in visit {self.visit + 1}" if self.visit else ""
        return self.moment + visit + (", resumed after another run" if self.resumes_after_another else "")

    @property
    def resumes_after_another(self) -> bool:
        """Whether the next process drives another run of the flow first, as a worker may.

        That is done once all steps are recorded. Only state that the flow keeps in its process can then make a difference.
        """
        return self.moment in ("before append of '$flow' (success)", "before append of '$flow' (failure)")


class Stand(NamedTuple):
    """How a run stood when a visit of it ended."""

    state: FlowState
    error: str
    pairs: Sequence[tuple[str, str]]
    """The runs and steps that it waits for, or is parked by."""
    until: datetime | None
    entries: Sequence[StepRecord]
    """All entries of the run and of its children."""


@dataclass
class Visit:
    """What one process told of its visit."""

    moments: list[str] = field(default_factory=list)
    began: list[Step] = field(default_factory=list)
    ended: list[Step] = field(default_factory=list)
    """The steps whose outcomes the process appended."""
    recorded: frozenset[Step] = frozenset()
    """The steps that had an outcome when the visit began."""
    ahead: timedelta = timedelta()
    """By how much the clock of the process was set forward."""
    killed: bool = False
    in_hand: StepRecord | None = None
    """What the process was about to append when it was killed."""
    stand: Stand | None = None
    trouble: str = ""
    """What the visit raised, or how its process ended; empty if nothing went wrong."""
    is_hindered: bool = False
    """Whether the trouble has another cause than the flow: a lease was lost, or the store was away."""

    def hear(self, what: str, value: Any) -> None:
        """Take in one thing that the process told: `what` is the name of a field above, but for `moment`."""
        if what == "moment":
            self.moments.append(value)
        elif what in ("began", "ended"):
            getattr(self, what).append(value)
        elif what == "killed":
            self.killed, self.in_hand = True, value
        else:
            setattr(self, what, value)


class Followed(NamedTuple):
    """All visits of one run, and its effects."""

    plan: Plan
    visits: Sequence[Visit]
    effects: Counter[Hashable]

    @property
    def last(self) -> Visit:
        return self.visits[-1]

    @property
    def began(self) -> Counter[Step]:
        return Counter(step for visit in self.visits for step in visit.began)

    @property
    def entries(self) -> Sequence[StepRecord]:
        return self.last.stand.entries if self.last.stand else ()


def forked(work: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Have a fork of this process do some work; return the fork, and the connection on which it tells of that."""
    forks = multiprocessing.get_context("fork")
    mine, theirs = forks.Pipe(duplex=False)
    process = forks.Process(target=_work, args=(work, theirs, arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process, which the copy doesn't need
        process.start()
    theirs.close()
    return process, mine


def _work(work: Callable[..., None], connection: Connection, arguments: Sequence[Any]) -> None:
    work(connection.send, *arguments)
    connection.send(None)  # the pipe's end may never come: processes that the flow has started may hold it open
    os._exit(0)  # nothing that this process registered to be done at its end is the copy's


def follow(send: Callable[[Any], None], job: Job, plans: Sequence[Plan]) -> None:
    """Follow runs to their ends, one after another; send what became of each, or the text of what went wrong."""
    os.setpgid(0, 0)  # whoever ends this process ends all that it has started
    for plan in plans:
        try:
            followed = _follow(job, plan)
            for number in range(2, _TRIES + 1):
                if followed.last.is_hindered:
                    followed = _follow(job, plan._replace(run_id=f"{plan.run_id}-{number}"))
            send((plan, followed))
        except BaseException:  # such as pytest's own
            send((plan, traceback.format_exc()))


def _follow(job: Job, plan: Plan) -> Followed:
    """Have processes visit a run, one after another, until it ends or can't go on."""
    input = job.input(plan.run_id)
    visits: list[Visit] = []
    before: Stand | None = None
    goes_on = True
    while goes_on:
        deadly = plan.moment if len(visits) == plan.visit else None
        is_after_another = plan.resumes_after_another and len(visits) == plan.visit + 1
        other = Plan(f"{plan.run_id}-other", whole=True) if is_after_another else None
        visit = _fork_visit(job, plan, input, before, visits[-1].ahead if visits else timedelta(), deadly, other)
        visits.append(visit)
        before = visit.stand
        waits = before is not None and before.state in ("waiting", "parked")
        can_go_on = before is not None and (before.until is not None or bool(job.decide and before.pairs))
        goes_on = not visit.trouble and (visit.killed or (waits and can_go_on)) and len(visits) < _MOST_VISITS
    return Followed(plan, visits, Counter(job.effects(plan.run_id) if job.effects else ()))


def _fork_visit(
    job: Job,
    plan: Plan,
    input: Mapping[str, Any],
    before: Stand | None,
    ahead: timedelta,
    deadly: str | None,
    other: Plan | None,
) -> Visit:
    """Have a process of its own visit a run, and return what it told."""
    visit = Visit(ahead=ahead)
    process, connection = forked(_visit, job, plan, input, before, ahead, deadly, other)
    end = monotonic() + job.timeout
    try:
        while not visit.killed and connection.poll(max(end - monotonic(), 0)):
            if (told := connection.recv()) is None:
                break
            visit.hear(*told)
        else:
            if not visit.killed:
                visit.trouble = f"its process had not ended after {job.timeout:g} s, at {visit.moments[-1:] or 'its beginning'}"
    except EOFError:
        process.join()
        if not (visit.stand or visit.trouble or visit.killed):
            visit.trouble = f"the process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        connection.close()
    return visit


def _visit(
    send: Callable[[Any], None],
    job: Job,
    plan: Plan,
    input: Mapping[str, Any],
    before: Stand | None,
    ahead: timedelta,
    deadly: str | None,
    other: Plan | None,
) -> None:
    """Visit a run in this process, which is a fork, and tell of it. If there is another run, drive that one first."""

    def tell(what: str, value: Any) -> None:
        send((what, value))

    async def drive() -> None:
        if other is not None:
            await _drive(lambda *_: None, job, other, job.input(other.run_id), None, JumpingClock(timedelta()), None)
        await _drive(tell, job, plan, input, before, JumpingClock(ahead), deadly)

    try:
        asyncio.run(drive())
    except BaseException as error:
        tell("is_hindered", isinstance(error, LockLost | StoreError | RunBusy | ResultNotRecorded))
        tell("trouble", "".join(traceback.format_exception(error)))


async def _drive(
    tell: Tell, job: Job, plan: Plan, input: Mapping[str, Any], before: Stand | None, clock: JumpingClock, deadly: str | None
) -> None:
    """Do what the run waits for since the visit before, drive it until it ends or waits, and tell how it stands."""
    warnings.simplefilter("error", StepDrift)
    moments = Moments(plan.run_id, tell, deadly)
    async with job.open_store() as store:
        if isinstance(store, MemoryStore):
            raise TypeError("a MemoryStore is gone with its process: give a store that others can open, such as 'sqlite:' + path")
        act = partial(_act, store, job.decide, plan.run_id)
        if before is not None and not await act(before.pairs):
            if before.until is None:
                raise AssertionError(f"decide= left {', '.join(map(str, before.pairs))} undecided: {before.error}")
            clock.jump_to(before.until)
            tell("ahead", clock.ahead)
        earlier = await _logs(store, plan.run_id)
        tell("recorded", frozenset(Step.of(plan.run_id, record) for record in earlier if decided(record)))
        flow = job.flow.options(clock=clock, wait_limit=0, lock_wait=_LOCK_SECONDS)
        async with Runner(WatchedStore(store, moments), plan.run_id, **runner_options(flow._options)) as runner:
            runner._run.driver = WatchingDriver(moments, clock, act if plan.whole else None)
            standing = await flow._stand(runner, flow._take(input), {})
            runner._run.suspended = None  # its record says so
        error = "" if standing.error is None else "".join(traceback.format_exception_only(standing.error)).strip()
        record, entries = standing.record, await _logs(store, plan.run_id)
        tell("stand", Stand(state_of(record), error, waits_of(record), record.until, entries))


async def _act(store: Store, decide: Decide | None, run_id: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """Have `decide` decide the steps that the run waits for; return whether one of them, or the run itself, has changed."""
    if decide is None:
        return False
    looked_at = [*pairs, (run_id, FLOW)]
    before = [await store.get(*pair) for pair in looked_at]
    for record in before[:-1]:
        if record is not None and not decided(record) and (record.kind in _DECIDED_BY_OTHERS or record.status == "started"):
            # In a context of its own: the run that waits doesn't drive what is done for it.
            await asyncio.create_task(_awaited(decide, store, record), context=Context())
    return before != [await store.get(*pair) for pair in looked_at]


async def _awaited(decide: Decide, store: Store, record: StepRecord) -> None:
    await decide(store, record)


async def _logs(store: Store, run_id: str) -> list[StepRecord]:
    """Return all entries of a run and of its children."""
    entries = [*await store.list(run_id)]
    for child in children_of(entries):
        entries += await _logs(store, child)
    return entries
