"""Take the documentation's picture of the page anew, in Chromium: `nox -s picture`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))
from durable_core import Runner, RunSuspended, Store, control, flow
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


def main() -> None:
    with served(in_memory, title="Refunds") as site, sync_playwright() as playwright:
        site.run(open_shop(site.store))
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
        browser.close()


if __name__ == "__main__":
    main()
