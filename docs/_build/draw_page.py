"""Take the documentation's pictures of the page anew, in Chromium: `nox -s picture`."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))
from durable_core import MemoryStore, Runner, RunSuspended, StepError, StepRecord, Store, control, flow
from durable_core.clock import SystemClock
from tests.web.browser.conftest import in_memory, served

ASSETS = Path(__file__).parents[1] / "assets"
ASKED = ["alice", "bob", "carol"]


class Earlier(SystemClock):
    """A clock that is slow, so that there is something to wait for."""

    def __init__(self, by: timedelta) -> None:
        super().__init__()
        self.by = by

    def now(self) -> datetime:
        return super().now() - self.by


@flow(wait_limit=0)
async def refund(runner: Runner, order: str, items: list[dict[str, object]], quorum: int = 1) -> None:
    amount = sum(int(str(item["price"])) for item in items)
    asked = {"order": order, "customer": "Mia Chen", "items": items} | ({"edit": {"amount": amount}} if quorum > 1 else {})
    await runner.approval("approve-refund", asked, timeout=timedelta(hours=48), quorum=quorum, approvers=ASKED)


async def open_shop(store: Store) -> None:
    """Have two refunds wait, one of them for a second person."""
    lamp, chairs = {"item": "lamp", "price": 90, "why": "broken"}, {"item": "6 chairs", "price": 1160, "why": "too late"}
    for hours, order, items, quorum in [(5, "A-1002", [chairs, lamp], 2), (2, "A-1017", [lamp], 1)]:
        with suppress(RunSuspended):
            past = refund.options(clock=Earlier(timedelta(hours=hours)))
            await past.run(store, run_id=f"refund-{order}", order=order, items=items, quorum=quorum)
    await control.approve(store, "refund-A-1002", "approve-refund", by="bob", reason="I saw the lamp myself")


RUN = "settle-2026-11-28"
VOTE = {"approved": True, "by": "alice", "reason": "the sums agree", "at": "2026-11-28T18:00:00Z"}
TIMELINE: list[tuple[str, float, float, dict[str, Any]]] = [
    ("$flow", 0, 0, {"kind": "flow", "name": "settle", "status": "started", "note": {"input": {"day": "2026-11-28"}}}),
    ("read-orders", 0, 4, {"result": b'{"orders":12,"total":1840}'}),
    ("fetch-rates", 4, 7, {"status": "waiting", "error": StepError("ConnectionError", "no answer from 10.0.0.7:443")}),
    ("fetch-rates", 15, 18, {"revision": 1, "attempt": 2, "result": b'{"USD":1.16,"GBP":0.88}'}),
    ("settle-eu", 18, 18, {"kind": "flow", "status": "waiting", "note": {"run": f"{RUN}/settle-eu"}}),
    ("settle-eu", 18, 33, {"kind": "flow", "revision": 1, "result": b'"7 paid"', "note": {"run": f"{RUN}/settle-eu"}}),
    ("check-limits", 33, 41, {"result": b'{"within":true}'}),
    ("approve-total", 41, 41, {"kind": "approval", "status": "waiting", "note": {"show": {"total": 1840}}}),
    ("approve-total", 41, 58, {"kind": "approval", "revision": 1, "result": json.dumps(VOTE).encode(), "note": {"votes": [VOTE]}}),
    ("pay", 58, 58, {"status": "started"}),
    ("progress", 62, 62, {"kind": "published", "result": b'{"paid":3,"of":5}'}),
]
"""What a run that is at work did: its steps, from and to which second, and the rest of each entry."""


async def begin_settling(store: Store) -> object:
    """Have a run that has been at work for a minute; return what holds it."""
    began = datetime.now(UTC) - timedelta(seconds=70)
    for step_id, since, until, fields in TIMELINE:
        times = {name: began + timedelta(seconds=at) for name, at in (("started_at", since), ("ended_at", until))}
        await store.append(StepRecord(run_id=RUN, step_id=step_id, **times, **fields))
    assert isinstance(store, MemoryStore)
    lock = store.lock(RUN)
    await lock.__aenter__()
    return lock


def main() -> None:
    with served(in_memory, title="Refunds") as site, sync_playwright() as playwright:
        site.run(open_shop(site.store))
        held = site.run(begin_settling(site.store))
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": 1000, "height": 700},
                color_scheme=scheme,  # type: ignore[arg-type]  # it is one of them
                device_scale_factor=1.5,
                extra_http_headers={"x-user": "alice"},
            )
            page = context.new_page()
            page.goto(site.url)
            page.screenshot(path=ASSETS / f"page-{scheme}.png", full_page=True)
            page.goto(f"{site.url}run?run={RUN}")
            below = page.locator(".legend").bounding_box()
            assert below is not None
            clip = {"x": 0, "y": 0, "width": 1000, "height": below["y"] + below["height"] + 16}
            page.screenshot(path=ASSETS / f"run-{scheme}.png", full_page=True, clip=clip)  # type: ignore[arg-type]  # it is one
        browser.close()
        del held


if __name__ == "__main__":
    main()
