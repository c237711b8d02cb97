"""A worker: takes the wake-ups of its flows, and drives each run as far as it goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from starlette.applications import Starlette

from durable_core.clock import Clock, SystemClock
from durable_core.control import RunStatus
from durable_core.engine import AnyFlow, asynchronous
from durable_core.events import OnEvent, check_handlers
from durable_core.flow import Flow
from durable_core.options import duration
from durable_core.store import Store, check_store, lock_of, wakeups_of

from ._loop import Loop, Settings
from ._schedules import CatchUp, Schedules
from ._webhooks import Webhooks
from .report import SweepReport
from .signatures import Verify

_MAX_BODY: Final = 2**20
_VISIBILITY_SECONDS: Final = 60.0
_LONGEST: Final = 365 * 86_400


class Worker:
    """Starts, resumes and finishes the runs of its flows, with any number of other workers on the same store.

    `async with worker:` works in the background; `await worker.serve()` works until SIGTERM or SIGINT; `await worker.sweep()`
    does one round and returns. Runs of flows that it doesn't have stay for other workers.

    `concurrency` is how many runs are driven at the same time. A wake-up that was taken is hidden from other workers for
    `visibility_timeout` seconds: so long after a worker died others go on with its runs. That is a minute unless given, and no
    shorter than the store's locks outlive a process. `poll` is how many seconds pass between two looks for wake-ups: half a
    second unless given, on a store that can't hide wake-ups ten. After `max_crashes` crashes
    without progress a run is parked. The sweep takes up runs whose process died, unless that was longer ago than `adopt`.
    On a stop, running steps have `shutdown_timeout` seconds to end before they are cancelled. `aliases` are flows by names that
    they had: `{"old-name": flow}`. `on_event` is told what happens, as a runner's; `clock` replaces the machine's in tests.
    """

    def __init__(
        self,
        store: Store,
        flows: Collection[AnyFlow],
        *,
        concurrency: int = 20,
        visibility_timeout: float | timedelta | None = None,
        poll: float | timedelta | None = None,
        max_crashes: int = 5,
        adopt: timedelta = timedelta(days=1),
        shutdown_timeout: float | timedelta = 30,
        aliases: Mapping[str, AnyFlow] | None = None,
        on_event: OnEvent | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_store(store)
        check_handlers(on_event)
        self.store: Final = store
        self._clock: Final = clock or SystemClock()
        hides = getattr(wakeups_of(store), "hides_wakeups", True)
        settings = Settings(
            concurrency=_number("concurrency", concurrency),
            visibility_timeout=_hidden_for(store, visibility_timeout),
            poll=(0.5 if hides else 10.0) if poll is None else duration("poll", poll, zero=False),
            max_crashes=_number("max_crashes", max_crashes),
            adopt=duration("adopt", adopt),
            shutdown_timeout=duration("shutdown_timeout", shutdown_timeout),
        )
        named = _by_name(flows, aliases or {})
        self._schedules: Final = Schedules(store, named, self._clock, settings.visibility_timeout)
        self._loop: Final = Loop(store, named, settings, self._schedules, self._clock, on_event)
        self._webhooks: Final = Webhooks(store, named, self._loop.is_healthy)

    async def __aenter__(self) -> Self:
        await self._loop.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self._loop.stop()

    async def serve(self) -> None:
        """Work until SIGTERM or SIGINT, and stop gracefully: steps that run may end, and all runs are handed to others."""
        await self._loop.serve()

    async def sweep(self) -> SweepReport:
        """Do one round over all that is due, ticks of schedules too, and return; for cron, timers and functions in a cloud."""
        return await self._loop.sweep()

    def on_end(self, fn: Callable[[RunStatus], Awaitable[object] | object]) -> Callable[[RunStatus], Awaitable[object] | object]:
        """Have `fn` called with the status of each run that ended in this worker's hands, at least once; a decorator, too."""
        if not callable(fn):
            raise TypeError(f"on_end needs a function of the run's status, not {fn!r}")
        self._loop.ends.handlers.append(fn)
        return fn

    def cron(
        self,
        expression: str,
        flow: AnyFlow,
        *,
        name: str | None = None,
        timezone: str = "UTC",
        catch_up: CatchUp = "none",
        input: Mapping[str, Any] | Callable[[datetime], Mapping[str, Any]] | None = None,
    ) -> None:
        """Ask for a run of one of this worker's flows at each time that a cron expression names.

        `expression` has five fields, or is `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` or `@annually`. It
        is read in `timezone`. When clocks change, a fixed time comes once: the first of two in autumn, the next minute that
        exists in spring. An hourly time comes in both hours.

        `name`, the flow's unless given, names the schedule: the run id is the name and the time in UTC, such as
        `settle@2026-03-29T01:00Z`. So each of the workers that declare the schedule may ask for a run, and it is started once.

        A time that no worker was there for is left out once it is `visibility_timeout` old; with `catch_up="last"` the newest
        such time is made up for. Times from before the schedule was first seen in the store never are.

        `input` is what the flow is given: a mapping, or a function that returns one for the time, an aware datetime in
        `timezone`. A run for which that function fails is logged and left out.
        """
        settings = self._loop.settings
        if settings.poll >= settings.visibility_timeout:
            raise ValueError(
                f"poll is {settings.poll:g} s and visibility_timeout {settings.visibility_timeout:g} s; a schedule would miss"
                " times unless poll is shorter. Give a shorter poll or a longer visibility_timeout"
            )
        self._schedules.add(expression, asynchronous(flow), name=name, timezone=timezone, catch_up=catch_up, input=input)

    def webhook(
        self,
        path: str,
        flow: AnyFlow | None = None,
        *,
        verify: Verify,
        run_id: Callable[[Any], str] | None = None,
        input: Callable[[Any], Any] | None = None,
        send_to: Callable[[Any], tuple[str, str]] | None = None,
        max_body: int = _MAX_BODY,
    ) -> None:
        """Ask for a run of `flow` at each POST to `path` of `app` that `verify` trusts.

        `verify` is `github(secret)`, `stripe(secret)`, `standard(secret)` or a function of the `Delivery`, which may be async:
        it raises for what is not to be trusted, and returns the delivery's id, or None where that has none. `input` and `run_id`
        are functions of the payload, the parsed JSON: they return the flow's input by name and the run's id. Without them the
        flow gets the payload as `payload`, and the id is made of the path and the delivery's id. So a delivery that comes again
        starts nothing.

        With `send_to` instead of a flow the delivery sends an event: that function of the payload returns the ids of the run and
        of the event, and `input` the event's value, which is the payload unless given.

        A sender gets 202 with the run's id; 200 where the run has ended, with its status and, if it succeeded, its result. Else
        nothing began: 400 for a body, an id or an input that can't be read, 401 where `verify` raised, 404, 405, 409 if the run
        has other input or the event another outcome, 413 for a body of more than `max_body` bytes. At 503 the store was away:
        the delivery may have been recorded or not, and is to be sent again.
        """
        taken = None if flow is None else asynchronous(flow)
        self._webhooks.add(path, taken, verify=verify, run_id=run_id, input=input, send_to=send_to, max_body=max_body)

    @property
    def paths(self) -> Sequence[str]:
        """The paths of its webhooks."""
        return self._webhooks.paths

    @property
    def app(self) -> Starlette:
        """The worker's webhooks as an ASGI application, to mount under a prefix or to serve; it doesn't make the worker work.

        `GET /healthz` is 200 while the worker works in this process and its last poll is younger than three polls, else 503.
        """
        return self._webhooks.app


def _hidden_for(store: Store, given: float | timedelta | None) -> float:
    """Return for how many seconds a wake-up is hidden. Raises `ValueError` where the lock of a dead worker would outlive that."""
    lease: float = getattr(lock_of(store), "lease_seconds", None) or 0
    if given is None:
        return max(_VISIBILITY_SECONDS, lease)
    seconds = duration("visibility_timeout", given, zero=False)
    if seconds > _LONGEST:
        raise ValueError(f"visibility_timeout must be at most {_LONGEST} seconds, a year, not {given!r}")
    if seconds < lease:
        raise ValueError(
            f"visibility_timeout is {seconds:g} s, but the locks of {store!r} outlive a dead worker by {lease:g} s: other workers"
            f" would take its wake-ups too early. Give {lease:g} s or more, or give the store a shorter `lease`"
        )
    return seconds


def _number(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be a whole number, at least 1, not {value!r}")
    return value


def _by_name(flows: Collection[AnyFlow], aliases: Mapping[str, AnyFlow]) -> dict[str, Flow[Any, Any]]:
    """Return the flows by the names under which runs are recorded. Raises for what is no flow, and for two of one name."""
    given: object = flows
    if not isinstance(given, Collection):
        example = getattr(given, "name", "onboard")
        raise TypeError(f"flows must be a list of functions decorated with @flow, such as [{example}], not {given!r}")
    if not isinstance(aliases, Mapping):
        raise TypeError(f'aliases must map former names to flows, {{"old-name": flow}}, not {aliases!r}')
    named: dict[str, Flow[Any, Any]] = {}
    for name, each in [*((getattr(listed, "name", ""), listed) for listed in flows), *aliases.items()]:
        flow = asynchronous(each)
        if not isinstance(flow, Flow):
            raise TypeError(f"flows must be functions decorated with @flow, not {flow!r}")
        if not isinstance(name, str) or not name:
            raise ValueError(f"aliases must map former names to flows; a name can't be {name!r}")
        if named.setdefault(name, flow) is not flow:
            raise ValueError(
                f"two flows of this worker have the name {name!r}: {named[name]!r} and {flow!r}; give one another name"
            )
    if not named:
        raise ValueError("flows is empty: a worker needs the flows whose runs it drives")
    return named
