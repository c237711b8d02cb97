"""Run a flow, and kill its process at every point of the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from time import perf_counter, sleep
from typing import Any, Final, Literal
from uuid import uuid4

from durable_core._system.faces import asynchronous
from durable_core.engine import AnyFlow
from durable_core.errors import DurableError
from durable_core.flow import Flow
from durable_core.options import duration
from durable_core.stores.opening import open_store as open_by_url
from durable_core.testing._samples import OpenStore

from .judging import Undisturbed, began_again
from .progress import Progress
from .report import CrashPoint, CrashReport, NotCrashSafe
from .visits import Decide, Followed, Job, Plan, follow, forked

_LATER: Final = 1.1  # seconds between the two undisturbed runs, so that a time in whole seconds differs between them


def crash_everywhere(
    flow: AnyFlow,
    *,
    open_store: str | OpenStore,
    input: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None = None,
    decide: Decide | None = None,
    effects: Callable[[str], Iterable[Hashable]] | None = None,
    ends: Literal["succeeded", "failed", "cancelled"] = "succeeded",
    at_once: int = 4,
    timeout: float | timedelta = 120,
) -> CrashReport:
    """Kill the process of a flow with SIGKILL at every point, and check that the run ends as if nothing had happened.

    First the flow runs twice undisturbed, in one process. Then it runs once so that it is suspended at each wait, and a new
    process continues it. Then it runs once for each point: before and after every append, as the function of each step begins,
    and around every wake-up, lock and transaction. The process is killed at that point, and new processes continue the run until
    it ends.

    - `open_store` is the store's URL, or a function that opens the store, which each process calls. Keep workers away from this
      store: they would continue the runs. A `MemoryStore` raises `DurableError`, since it ends with its process.
    - `input` is the flow's input, or a function that makes it from a run id. Each point has its own run, so the function may also
      make a clean place for the run's effects.
    - `decide(store, record)` is awaited for each approval and event that a run waits for; `record` is its newest entry. It calls
      `control.approve` or `control.send`. If it does nothing, the wait ends at its deadline. It is also called for an
      interrupted at-most-once step (`record.kind` is `step`), and for a child that was started with `wait=False` (`flow`).
    - `effects(run_id)` returns what the run did outside, such as the lines of a ledger. Without it, no effect outside of a step
      is found.
    - `ends` is how an undisturbed run ends.
    - `at_once` is how many runs are tried at the same time.
    - `timeout` is seconds or a timedelta. A process that has not ended by then is killed, and its run is lost.

    Sleeps, deadlines and long delays take no time: the clock jumps.

    Returns a report of all points. Raises `NotCrashSafe`, an `AssertionError` that names the first point and holds the report,
    if any run differs from an undisturbed one:

    - It ends in another way, or not at all: it crashed, drifted, or waits for something that nobody decides.
    - The function of a step began again, though its outcome was recorded. Only a step in flight may begin again.
    - Other steps have an outcome, or a step, the flow or a child has another value, error, kind or arguments. Run ids in these
      don't count. Nor does anything that differs between the two undisturbed runs, such as a number that a service draws, or the
      time in seconds. If something differs only now and then, such as the day or the winner of a race, let the test fix it.
    - The next process called a step with other arguments than the process that was killed, or the flow returned another value,
      though the same steps were recorded.
    - An effect is missing, or happened more often than undisturbed while no step began again.

    The number of entries about visits, waits and attempts may differ, and is not compared. Nor are times, attempts and notes.

    Raises `TypeError` or `ValueError` for arguments that don't fit, and `DurableError` if the undisturbed flow doesn't end as
    `ends` says, or if the system can't fork processes, as Windows. The processes are forks of this one, so they see whatever a
    test has patched.
    """
    began = perf_counter()
    job = _checked(flow, open_store, input, decide, effects, ends, at_once, timeout)
    prefix = f"crash-{uuid4().hex[:8]}"
    with Progress(job.flow.name, total=3) as progress:
        [first] = _follow_all(job, [Plan(f"{prefix}-1", whole=True)], 1, progress)
        if first.last.stand is None or first.last.stand.state != ends:
            raise DurableError(f"flow {job.flow.name!r} has to end as {ends!r} where nobody disturbs it: {_standing(first)}")
        sleep(max(began + _LATER - perf_counter(), 0))
        second, suspended = _follow_all(job, [Plan(f"{prefix}-2", whole=True), Plan(f"{prefix}-3")], at_once, progress)
        undisturbed = Undisturbed(first, second)
        places = [(number, moment) for number, visit in enumerate(suspended.visits) for moment in visit.moments]
        plans = [Plan(f"{prefix}-{number}", False, *place) for number, place in enumerate(places, 4)]
        progress.total += len(plans)
        followed = [second, suspended, *_follow_all(job, plans, at_once, progress)]
    points = [_point(each, undisturbed) for each in followed]
    report = CrashReport(job.flow.name, points, perf_counter() - began)
    if report.different:
        raise NotCrashSafe(report)
    return report


def _checked(
    flow: AnyFlow,
    open_store: str | OpenStore,
    input: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None,
    decide: Decide | None,
    effects: Callable[[str], Iterable[Hashable]] | None,
    ends: str,
    at_once: int,
    timeout: float | timedelta,
) -> Job:
    """Return what all runs share. Raises for arguments that don't fit, before anything runs."""
    found = asynchronous(flow)
    if not isinstance(found, Flow):
        raise TypeError(f"crash_everywhere takes a flow, which @flow makes of a function (runner, **input), not {flow!r}")
    if isinstance(open_store, str):
        url = open_store
        open_by_url(url)  # raises for one that no store takes
        open_store = lambda: open_by_url(url)  # noqa: E731
    if not callable(open_store):
        raise TypeError(f"open_store must be a store's URL or a function that opens the store, not {open_store!r}")
    for name, function in (("decide", decide), ("effects", effects)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function or None, not {function!r}")
    if ends not in ("succeeded", "failed", "cancelled"):
        raise ValueError(f"ends={ends!r}: expected 'succeeded', 'failed' or 'cancelled'")
    if isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1:
        raise ValueError(f"at_once={at_once!r}: expected a number of runs, from 1")
    seconds = duration("timeout", timeout, zero=False)
    if not hasattr(os, "fork"):
        raise DurableError("crash_everywhere forks processes, which this system can't: run it on Linux or macOS, or in WSL")
    given = dict(input or {}) if not callable(input) else None
    if given is not None:
        found._take(given)
    make: Callable[[str], Mapping[str, Any]] = input if callable(input) else lambda run_id: given or {}
    return Job(found, make, open_store, decide, effects, seconds)


def _follow_all(job: Job, plans: Sequence[Plan], at_once: int, progress: Progress) -> Sequence[Followed]:
    """Follow runs, several at the same time, and return what became of each, in the order of `plans`."""
    lanes = [forked(follow, job, plans[lane::at_once]) for lane in range(min(at_once, len(plans)))]
    open_: list[Connection] = [connection for _, connection in lanes]
    found: dict[Plan, Followed] = {}
    try:
        while open_:
            for connection in wait(open_):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except EOFError:
                    message = None
                if message is None:
                    open_.remove(connection)
                    continue
                plan, told = message
                if isinstance(told, str):
                    raise DurableError(f"crash_everywhere could not follow a run of flow {job.flow.name!r}:\n{told}")
                found[plan] = told
                progress.advance()
    finally:
        for process, connection in lanes:
            assert process.pid is not None
            with suppress(ProcessLookupError):  # it has not made its group yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
            connection.close()
    if missing := [str(plan) for plan in plans if plan not in found]:
        raise DurableError(f"crash_everywhere lost the processes that followed {', '.join(missing[:3])}: were they killed?")
    return [found[plan] for plan in plans]


def _point(followed: Followed, undisturbed: Undisturbed) -> CrashPoint:
    """Judge a run."""
    stand = followed.last.stand
    return CrashPoint(
        str(followed.plan),
        followed.plan.run_id,
        any(visit.killed for visit in followed.visits),
        "lost" if stand is None else stand.state,
        {str(step): times for step, times in followed.began.items()},
        [*map(str, began_again(followed, undisturbed.first))],
        undisturbed.difference(followed),
    )


def _standing(followed: Followed) -> str:
    """Return how a run stands, in words."""
    stand = followed.last.stand
    if stand is None:
        return followed.last.trouble.strip()
    waits = ", ".join(f"{step_id!r} of {run_id!r}" for run_id, step_id in stand.pairs)
    hint = f"; it waits for {waits}: give decide=, which decides it" if waits else ""
    return f"it is {stand.state!r}{f': {stand.error}' if stand.error else ''}{hint}"
