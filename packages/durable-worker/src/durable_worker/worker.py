"""The worker, which takes the wake-ups of its flows and drives each run as far as it can."""

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

    `async with worker:` works in the background, `await worker.serve()` works until SIGTERM or SIGINT, and `await worker.sweep()`
    does one round and returns. Runs of other flows are left to other workers.

    `concurrency` is the number of runs that are driven at the same time. A wake-up that a worker has taken is hidden from other
    workers for `visibility_timeout` seconds; if a worker dies, others continue its runs after that time. The default is a minute,
    or longer if the store's locks outlive a process for longer. `poll` is the number of seconds between two looks for wake-ups:
    by default half a second, or ten on a store that can't hide wake-ups. After `max_crashes` crashes without progress, a run is
    parked. The sweep takes up runs whose process died, unless that was longer ago than `adopt`. When the worker stops, running
    steps have `shutdown_timeout` seconds to end before they are cancelled. `aliases` maps former names to flows:
    `{"old-name": flow}`. `on_event` gets events, like that of a runner. `clock` replaces the machine's clock in tests.
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
        """Work until SIGTERM or SIGINT, then stop gracefully: running steps may end, and all runs are handed to other workers."""
        await self._loop.serve()

    async def sweep(self) -> SweepReport:
        """Do everything that is due once, including schedules, and return. For cron, timers and cloud functions."""
        return await self._loop.sweep()

    def on_end(self, fn: Callable[[RunStatus], Awaitable[object] | object]) -> Callable[[RunStatus], Awaitable[object] | object]:
        """Call `fn` at least once with the status of each run that ends in this worker. Also a decorator."""
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
        """Start a run of one of this worker's flows at each time that a cron expression describes.

        `expression` has five fields, or is `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly` or `@annually`. Its
        times are in `timezone`. When clocks change, a fixed time comes once: the first of two in autumn, and the next minute that
        exists in spring. An hourly time comes in both hours.

        `name` is the name of the schedule; by default the flow's. The run id consists of the name and the time in UTC, such as
        `settle@2026-03-29T01:00Z`, so each run is started once, however many workers declare the schedule.

        A time that passed while no worker ran is skipped once it is older than `visibility_timeout`. With `catch_up="last"`, a
        run is started for the newest skipped time. Times before the schedule was first recorded in the store are always skipped.

        `input` is the flow's input: a mapping, or a function that returns one for the time, an aware datetime in `timezone`. If
        that function raises, the error is logged and the run is skipped.
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
        """Start a run of `flow` for each POST to `path` of `app` that `verify` accepts.

        `verify` is `github(secret)`, `stripe(secret)`, `standard(secret)` or a function of the `Delivery`, which may be async.
        It raises an exception for a delivery that can't be trusted, and returns the delivery's id, or None if there is none.
        `input` and `run_id` are functions of the payload, which is the parsed JSON. They return the flow's input by name and the
        run's id. Without them, the flow gets the payload as `payload`, and the run id consists of the path and the delivery's id,
        so a repeated delivery starts nothing.

        With `send_to` instead of a flow, the delivery sends an event. `send_to` is a function of the payload that returns the ids
        of the run and of the event; `input` returns the event's value, by default the payload.

        The response is 202 with the run's id, or 200 if the run has ended, with its status and, if it succeeded, its result. With
        other codes nothing was started: 400 if the body, an id or the input can't be read, 401 if `verify` raised, 404, 405, 409
        if the run has other input or the event another outcome, 413 if the body is larger than `max_body` bytes. 503 means that
        the store was unreachable: the delivery may have been recorded or not, and should be sent again.
        """
        taken = None if flow is None else asynchronous(flow)
        self._webhooks.add(path, taken, verify=verify, run_id=run_id, input=input, send_to=send_to, max_body=max_body)

    @property
    def paths(self) -> Sequence[str]:
        """The paths of this worker's webhooks."""
        return self._webhooks.paths

    @property
    def app(self) -> Starlette:
        """The worker's webhooks as an ASGI application, to mount under a prefix or to serve. It doesn't run the worker.

        `GET /healthz` returns 200 while the worker runs in this process and its last poll is younger than three polls, otherwise
        503.
        """
        return self._webhooks.app


def _hidden_for(store: Store, given: float | timedelta | None) -> float:
    """Return how many seconds a wake-up is hidden. Raises `ValueError` if a dead worker's lock would last longer."""
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
    """Return the flows by the names in the logs. Raises if one is not a flow, or if two have the same name."""
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
