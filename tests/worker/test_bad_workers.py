"""What can't be right about a worker is one clear error, when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from durable_core import MemoryStore, Runner, flow
from durable_worker import Worker


@flow
async def first(runner: Runner) -> None: ...


@flow(name="first")
async def namesake(runner: Runner) -> None: ...


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"store": "sqlite:./runs.db"},
            TypeError,
            "a store is needed, not its URL: write `async with open_store(url) as store:`",
        ),
        (
            {"flows": first},
            TypeError,
            "flows must be a list of functions decorated with @flow, such as [first], not <flow 'first'>",
        ),
        ({"flows": print}, TypeError, "flows must be a list of functions decorated with @flow, such as [onboard], not <built-in"),
        (
            {"flows": [first.run]},
            TypeError,
            "flows must be functions decorated with @flow, not <bound method Flow.run of <flow 'first'>>",
        ),
        ({"flows": []}, ValueError, "flows is empty"),
        ({"flows": [first, namesake]}, ValueError, "two flows of this worker have the name 'first'"),
        ({"aliases": {"first": namesake}}, ValueError, "two flows of this worker have the name 'first'"),
        (
            {"aliases": [namesake]},
            TypeError,
            "aliases must be flows by names that they had, {\"old-name\": flow}, not [<flow 'first'>]",
        ),
        ({"aliases": {"old": print}}, TypeError, "flows must be functions decorated with @flow, not <built-in"),
        ({"concurrency": 0}, ValueError, "concurrency must be a whole number from 1, not 0"),
        ({"max_crashes": True}, ValueError, "max_crashes must be a whole number from 1, not True"),
        ({"visibility_timeout": "1m"}, TypeError, "visibility_timeout must be a number of seconds or a timedelta, not '1m'"),
        ({"poll": 0}, ValueError, "poll must be a finite number of seconds above 0, not 0"),
        ({"shutdown_timeout": -1}, ValueError, "shutdown_timeout must be"),
        ({"on_event": "print"}, TypeError, "on_event must be"),
    ],
)
def test_a_worker_that_can_not_be(given: dict[str, Any], error: type[Exception], message: str) -> None:
    """The error gives the value, and says what was expected."""
    with pytest.raises(error) as raised:
        Worker(**{"store": MemoryStore(), "flows": [first], **given})
    assert str(raised.value).startswith(message)


def test_on_end_takes_a_function() -> None:
    """What can't be called is refused at once, and not when the first run ends."""
    with pytest.raises(TypeError, match="on_end takes a function of the run's status, not 'print'"):
        Worker(MemoryStore(), [first]).on_end("print")  # type: ignore[arg-type]
