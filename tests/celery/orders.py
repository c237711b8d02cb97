"""An application with flows, as the workers of the tests load it: `celery -A tests.celery.orders worker`."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Celery

from durable_core import Runner, flow
from durable_core.control import RunStatus
from durable_core.sync import Runner as BlockingRunner
from durable_core.sync import flow as blocking_flow
from durable_worker.celery import Carrier, attach

_effects = Path(os.environ.get("EFFECTS", os.devnull))


def effect(line: str) -> None:
    """Do something that a second time would show."""
    with _effects.open("a") as file:
        file.write(f"{line} {os.getpid()}\n")


async def slow_effect(line: str) -> None:
    """Begin, and end once the gate is open: a file of that name beside the effects."""
    effect(f"{line}-begins")
    while not _effects.with_name("gate").exists():
        await asyncio.sleep(0.02)
    effect(f"{line}-ends")


@flow
async def quick(runner: Runner, number: int) -> int:
    await runner.step("do", effect, f"quick-{number}", returns=None)
    return number


@flow
async def slow(runner: Runner, name: str) -> str:
    await runner.step("first", effect, f"{name}-first", returns=None)
    await runner.step("second", slow_effect, f"{name}-second", returns=None)
    await runner.step("third", effect, f"{name}-third", returns=None)
    return name


@flow(wait_limit=0)
async def ask(runner: Runner, name: str) -> bool:
    decision = await runner.approval("ok", {"name": name})
    await runner.step("do", effect, f"{name}-decided", returns=None)
    return decision.approved


@flow(wait_limit=0)
async def nap(runner: Runner, seconds: float) -> None:
    await runner.sleep("nap", timedelta(seconds=seconds))
    await runner.step("do", effect, "awake", returns=None)


@flow(wait_limit=0)
async def parent(runner: Runner) -> bool:
    return await runner.flow("child", ask, name="child")


@flow(concurrency=("pdf", 2))
async def pdf(runner: Runner, number: int) -> None:
    async def draw() -> None:
        effect(f"pdf+ {number}")
        await asyncio.sleep(0.1)
        effect(f"pdf- {number}")

    await runner.step("draw", draw, returns=None)


@blocking_flow(wait_limit=0)
def without_asyncio(runner: BlockingRunner, name: str) -> str:
    decision = runner.approval("ok", {"name": name})
    runner.step("do", effect, f"{name}-{decision.by}", returns=None)
    runner.flow("quick", quick, number=7)
    return name


FLOWS = [quick, slow, ask, nap, parent, pdf, without_asyncio]


def attached(
    broker: str, store: str, *, sweep_every: float = 60, visibility_timeout: float = 3600, shutdown_timeout: float = 30
) -> tuple[Celery, Carrier]:
    """Make the application; the visibility timeout is the broker's."""
    app = Celery("orders", broker=broker)
    app.conf.update(
        broker_transport_options={
            "visibility_timeout": visibility_timeout,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
    )
    carrier = attach(app, store, FLOWS, sweep_every=sweep_every, shutdown_timeout=shutdown_timeout)

    @carrier.on_end
    def tell(run: RunStatus) -> None:
        effect(f"{run.run_id}-told")

    return app, carrier


if "BROKER" in os.environ:
    names = ("SWEEP_EVERY", "VISIBILITY_TIMEOUT", "SHUTDOWN_TIMEOUT")
    options: dict[str, Any] = {name.lower(): float(os.environ[name]) for name in names if name in os.environ}
    app, carrier = attached(os.environ["BROKER"], os.environ["STORE"], **options)
