"""The page: each view over 100,000 runs and a run of 100,000 steps, and its memory, `python benchmarks/web.py [store ...]`."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.rows import in_child, peak_memory, row
from durable_core import StepRecord, Store, open_store
from durable_core.engine import FLOW
from durable_web import User, app
from tests.soak.__main__ import place

MANY = 100_000
ASKED = 150
ROUNDS = 5
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
VIEWS = {
    "inbox": "",
    "runs": "runs",
    "runs that failed, of one flow": "runs?state=failed&flow=pay",
    "runs that wait for more than an hour": "runs?longer=1h",
    "runs, a page in the middle": f"runs?before={(BEGAN + timedelta(seconds=MANY // 2)).isoformat().replace('+', '%2B')}+x",
    "workers and schedules": "work",
    f"a run of {MANY:,} steps": "run?run=long",
    f"a run of {MANY:,} steps, those that failed": "run?run=long&only=failure",
    f"a step of {MANY:,}": "step?run=long&step=step-5000",
}


async def fill(store: Store) -> None:
    """Record runs of which a few wait for people, some failed, and most succeeded; and one run of many steps."""
    step: dict[str, Any] = {"result": b'{"amount":12,"currency":"EUR"}', "fingerprint": "0123456789abcdef"}

    async def add(number: int) -> None:
        at = BEGAN + timedelta(seconds=number)
        run_id = f"order-{number:06}"

        async def append(step_id: str, run_id: str = run_id, **fields: Any) -> None:
            await store.append(StepRecord(run_id=run_id, step_id=step_id, started_at=at, ended_at=at, **fields))

        await append("look-up", **step)
        ends: dict[str, Any] = {"status": "success", "result": b"1"}
        if number % (MANY // ASKED) == 0:
            await append("approve", kind="approval", status="waiting", note={"show": {"order": number}})
            ends = {"status": "waiting", "note": {"waiting_for": [[run_id, "approve"]]}}
        elif number % 20 == 1:
            ends = {"status": "failure", "note": {"failed": ["pay-back"]}}
        for revision, fields in enumerate(({"status": "started", "note": {"input": {"order": number}}}, ends)):
            await append(FLOW, revision=revision, kind="flow", name="pay", **fields)
        await append(f"step-{number}", "long", **({"status": "failure"} if number % 500 == 7 else step))

    began: dict[str, Any] = {"status": "started", "note": {"input": {}}, "started_at": BEGAN, "ended_at": BEGAN}
    await store.append(StepRecord(run_id="long", step_id=FLOW, kind="flow", name="long", **began))
    for start in range(0, MANY, 500):
        await asyncio.gather(*map(add, range(start, start + 500)))


async def measure(url: str) -> None:
    """Print how long each view takes, in the median, and by how much the process grew."""
    async with open_store(url) as store:
        page = app(store, user=lambda request: User("alice"))
        transport = httpx.ASGITransport(page)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            assert (await client.get("/healthz")).status_code == 200
            before = peak_memory()
            for path in VIEWS.values():
                taken: list[float] = []
                for _ in range(ROUNDS):
                    began = perf_counter()
                    shown = await client.get(f"/{path}")
                    taken.append(perf_counter() - began)
                    assert shown.status_code == 200, shown.text
                print(median(taken), len(shown.content))
            print(peak_memory() - before)


def main(*stores: str) -> None:
    kept = True
    for name in stores or ("sqlite", "postgres"):
        with TemporaryDirectory(dir=".") as folder, place(name, Path(folder).resolve(), lease=15) as (url, _):

            async def prepare(url: str = url) -> None:
                async with open_store(url) as store:
                    await fill(store)

            asyncio.run(prepare())
            *figures, grown = in_child(__file__, "--measure", url)
            for view, seconds, size in zip(VIEWS, figures[::2], figures[1::2], strict=True):
                kept &= row(f"{name}: {view}, {size / 1000:.0f} kB", seconds, 1.0, "s")
            kept &= row(f"{name}: memory for all of these", grown / 1e6, 300, "MB")
    sys.exit(not kept)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        asyncio.run(measure(sys.argv[2]))
    else:
        main(*sys.argv[1:])
