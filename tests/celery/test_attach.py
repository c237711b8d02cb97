"""What `attach` refuses, and what it sends."""

from __future__ import annotations

import json
from base64 import b64decode
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery

from durable_core import Runner, StoreError, control, flow
from durable_core.store import OpenableStore
from durable_worker.celery import attach
from tests.celery.conftest import Shop
from tests.celery.orders import nap, quick


@flow
async def first(runner: Runner) -> None: ...


@flow(name="first")
async def second(runner: Runner) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"app": "orders"}, TypeError, "app must be a Celery application, not 'orders'"),
        ({"store_url": "nonsense:runs"}, StoreError, "no store is installed for the scheme 'nonsense'"),
        ({"store_url": "memory:"}, StoreError, "each process would have its own store in memory"),
        ({"flows": []}, ValueError, "flows is empty"),
        ({"flows": [first, second]}, ValueError, "two flows of this worker have the name 'first'"),
        ({"flows": [print]}, TypeError, "flows must be functions decorated with @flow"),
        ({"max_crashes": 0}, ValueError, "max_crashes must be a whole number, at least 1, not 0"),
        ({"sweep_every": 0}, ValueError, "sweep_every"),
        ({"visibility_timeout": -1}, ValueError, "visibility_timeout"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_refused_at_once(wrong: dict[str, object], error: type[Exception], message: str, tmp_path: Path) -> None:
    """A wrong argument is an error before any task is there, and the application is as it was."""
    app = Celery("orders", broker="memory://")
    with pytest.raises(error, match=message):
        attach(**{"app": app, "store_url": f"sqlite:{tmp_path}/runs.db", "flows": [first], **wrong})  # type: ignore[arg-type]
    assert not [name for name in app.tasks if name.startswith("durable")]


def test_an_application_has_one_store(tmp_path: Path) -> None:
    """A second call would take the first one's tasks away."""
    app = Celery("orders", broker="memory://")
    attach(app, f"sqlite:{tmp_path}/runs.db", [first])
    with pytest.raises(ValueError, match="attach was already called for"):
        attach(app, f"sqlite:{tmp_path}/others.db", [first])


def test_it_configures_nothing_too_early(tmp_path: Path) -> None:
    """Settings that come after it count, and beat has the sweep."""
    app = Celery("orders", broker="memory://")
    attach(app, f"sqlite:{tmp_path}/runs.db", [first], sweep_every=timedelta(minutes=2))
    assert not app.configured
    app.conf.timezone = "Europe/Berlin"
    sweep = app.conf.beat_schedule["durable.sweep"]
    assert (sweep["schedule"], sweep["options"]) == (120, {"expires": 120})
    assert app.tasks["durable.go_on"].acks_late


async def test_a_task_holds_two_names_in_json(shop: Shop, store: OpenableStore) -> None:
    """Neither input nor results go through the broker, and no pickle."""
    await quick.start(store, "one", number=7)
    (message,) = shop.broker.command("LRANGE", "celery", 0, -1)
    sent = json.loads(message)
    assert sent["content-type"] == "application/json"
    assert json.loads(b64decode(sent["body"]))[:2] == [["quick", "one"], {}]


@pytest.mark.filterwarnings("ignore:You're running the worker with superuser privileges")
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_green_threads_are_refused(shop: Shop, pool: str) -> None:
    """A worker on a pool of green threads ends at its start, and says why."""
    with pytest.raises(SystemExit, match="use another --pool"):
        shop.app.Worker(pool=pool)


async def test_where_tasks_are_called_at_once_later_ones_are_not(tmp_path: Path) -> None:
    """With `task_always_eager` a run goes as far as it can; a task for later would be called now, and send itself for ever."""
    app = Celery("orders", broker="memory://", task_always_eager=True)
    carrier = attach(app, f"sqlite:{tmp_path}/runs.db", [nap])
    async with carrier.open_store() as store:
        await nap.start(store, "one", seconds=9)
        assert (await control.status(store, "one")).waiting_for == ("nap",)
    carrier._on_exit()
