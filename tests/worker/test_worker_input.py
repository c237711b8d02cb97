"""What a worker refuses, before anything ran."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from durable_core import Runner, flow
from durable_core.stores.memory import MemoryStore
from durable_worker import Worker


@flow
async def greet(runner: Runner) -> None: ...


@flow(name="greet")
async def other(runner: Runner) -> None: ...


class Leased(MemoryStore):
    """Its locks outlive a process by 15 s."""

    lease_seconds: float | None = 15.0


class Bare:
    """A store with nothing but the four methods."""

    append = get = list = clear = staticmethod(lambda *_: None)


@pytest.mark.parametrize(
    ("flows", "options", "said"),
    [
        ([greet], {"aliases": {"": greet}}, "aliases must map former names to flows; a name can't be ''"),
        ([greet], {"visibility_timeout": 1e300}, "visibility_timeout must be at most 31536000 seconds, a year, not 1e"),
        ([], {}, "flows is empty: a worker needs the flows whose runs it drives"),
        ([greet, other], {}, "two flows of this worker have the name 'greet'"),
        ([greet], {"aliases": {"greet": other}}, "two flows of this worker have the name 'greet'"),
        ([greet], {"concurrency": 0}, "concurrency must be a whole number, at least 1, not 0"),
        ([greet], {"concurrency": True}, "concurrency must be a whole number, at least 1, not True"),
        ([greet], {"max_crashes": 2.5}, "max_crashes must be a whole number, at least 1, not 2.5"),
        ([greet], {"poll": 0}, "poll"),
        ([greet], {"poll": float("nan")}, "poll"),
        ([greet], {"visibility_timeout": -1}, "visibility_timeout"),
        ([greet], {"shutdown_timeout": timedelta(seconds=-1)}, "shutdown_timeout"),
        ([greet], {"adopt": timedelta(seconds=-1)}, "adopt"),
    ],
)
def test_values_that_mean_nothing(flows: list[Any], options: dict[str, Any], said: str) -> None:
    """The error names the option and the value."""
    with pytest.raises(ValueError, match=said):
        Worker(MemoryStore(), flows, **options)


@pytest.mark.parametrize("flows", [[lambda runner: None], ["greet"], [None]])
def test_what_is_no_flow(flows: list[Any]) -> None:
    """A function without `@flow` is none."""
    with pytest.raises(TypeError, match="flows must be functions decorated with @flow, not"):
        Worker(MemoryStore(), flows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flows": greet}, "flows must be a list of functions decorated with @flow, such as [greet], not <flow 'greet'>"),
        ({"flows": print}, "flows must be a list of functions decorated with @flow, such as [onboard], not <built-in"),
        ({"aliases": [other]}, "aliases must map former names to flows, {\"old-name\": flow}, not [<flow 'greet'>]"),
        ({"on_event": "print"}, "on_event must be a function of one StepEvent, or a list of such functions, not 'print'"),
    ],
)
def test_what_is_of_another_kind(options: dict[str, Any], said: str) -> None:
    """The error shows what to write instead."""
    with pytest.raises(TypeError, match=f"^{re.escape(said)}"):
        Worker(MemoryStore(), **{"flows": [greet], **options})


def test_on_end_takes_a_function() -> None:
    """What can't be called is refused at once, and not when the first run ends."""
    with pytest.raises(TypeError, match="on_end needs a function of the run's status, not 'print'"):
        Worker(MemoryStore(), [greet]).on_end("print")  # type: ignore[arg-type]


def test_one_flow_given_twice_is_one() -> None:
    """No two have its name."""
    Worker(MemoryStore(), [greet, greet], aliases={"hello": greet})


@pytest.mark.parametrize("store", ["sqlite:runs.db", MemoryStore, Bare()])
def test_what_no_worker_can_work_on(store: Any) -> None:
    """A URL, a class, and a store that neither keeps wake-ups nor names its runs."""
    with pytest.raises(TypeError):
        Worker(store, [greet])


def test_a_visibility_timeout_shorter_than_a_lease() -> None:
    """The lock of a dead worker would outlive it; where none is given, it is long enough."""
    with pytest.raises(ValueError, match="visibility_timeout is 10 s, but the locks of .* outlive a dead worker by 15 s"):
        Worker(Leased(), [greet], visibility_timeout=10)
    Worker(Leased(), [greet], visibility_timeout=15)
    Leased.lease_seconds = 300.0
    try:
        assert Worker(Leased(), [greet])._loop.settings.visibility_timeout == 300
    finally:
        Leased.lease_seconds = 15.0
    assert Worker(MemoryStore(), [greet])._loop.settings.visibility_timeout == 60


def test_a_schedule_of_a_worker_that_looks_too_seldom() -> None:
    """A time may be older than the visibility timeout when it is seen first, and would be left out."""
    worker = Worker(MemoryStore(), [greet], poll=60, visibility_timeout=60)
    with pytest.raises(ValueError, match=re.escape("poll is 60 s and visibility_timeout 60 s")):
        worker.cron("0 9 * * *", greet)
