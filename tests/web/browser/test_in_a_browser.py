"""The page as people use it, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect
from starlette.exceptions import HTTPException
from starlette.requests import Request

from durable_core import Store, control, open_store
from durable_core.store import polling_of
from durable_web import User, decision_link
from durable_web._views import _live
from tests.web import shop
from tests.web.browser.conftest import SECONDS, Site, Visit, in_memory, served
from tests.web.flows import ask, fail
from tests.web.test_serving import SERVERS

WIDTHS = {"wide": 1440, "narrow": 390}
STANDARD = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
VIEWS = {
    "inbox": "",
    "runs": "runs",
    "all chosen": "runs?all=1&state=failed",
    "failed run": "run?run=settle-2026-11-28",
    "ended run": "run?run=refund-1000",
    "run that waits": "run?run=refund-1002",
    "parent": "run?run=parcel-7",
    "run at work": "run?run=import-1",
    "failed step": "step?run=settle-2026-11-28&step=pay",
    "approval": "step?run=refund-1002&step=approve-refund",
    "event": "step?run=parcel-7&step=picked-up",
    "workers and schedules": "work",
    "hostile run": f"run?{urlencode({'run': f'hostile {shop.HOSTILE}'})}",
    "hostile step": f"step?{urlencode({'run': f'hostile {shop.HOSTILE}', 'step': 'value'})}",
    "link": "",
}
SECRET = "for the tests of a browser"


def go_on(page: Page, label: str) -> None:
    """Press a button of a form, and wait for the page that follows."""
    with page.expect_navigation():
        page.get_by_role("button", name=re.compile(f"^{label}")).first.click()


def test_two_people_approve_in_two_windows(site: Site, visit: Visit) -> None:
    """One approves, and the other sees it live; twice is once; a value that one changes counts once both have approved it."""
    site.run(ask(site.store, "payout-1", quorum=2, approvers=["alice", "bob"]))
    alice, bob = visit(site, "alice").open(), visit(site, "bob").open()
    bob.get_by_label("Reason").fill("half typed")
    expect(bob.get_by_text("0 of 2")).to_be_visible()
    again = visit(site, "alice", java_script_enabled=False).open()  # which stays as it is

    alice.get_by_label("Reason").fill("checked the invoice")
    go_on(alice, "Approve")
    expect(alice.get_by_role("status").first).to_contain_text("Your approval is recorded")
    expect(alice.get_by_text("1 more answer is needed")).to_be_visible()
    expect(bob.get_by_text("1 of 2")).to_be_visible()
    expect(bob.get_by_text("checked the invoice")).to_be_visible()
    expect(bob.get_by_label("Reason")).to_have_value("half typed")

    go_on(again, "Approve")  # the page as it was before she voted
    record = site.run(site.store.get("payout-1", "approve"))
    assert record is not None
    assert [vote["by"] for vote in record.notes["votes"]] == ["alice"]
    assert record.status == "waiting"

    bob.get_by_label("Your value").fill('{"amount": 80}')
    go_on(bob, "Approve")
    expect(alice.get_by_text("Not everyone approved the same value")).to_be_visible()
    expect(alice.get_by_label("Your value")).to_have_value(re.compile("80"))
    go_on(alice, "Approve")
    expect(bob.get_by_text("Nothing waits for a decision")).to_be_visible()
    record = site.run(site.store.get("payout-1", "approve"))
    assert record is not None
    assert record.value()["by"] == "alice"
    assert record.value()["value"] == {"amount": 80}


def test_enter_decides_nothing(site: Site, visit: Visit) -> None:
    """Who types a reason and presses Enter has chosen none of the buttons; a button that has the focus is pressed by Enter."""
    site.run(ask(site.store, "payout-1"))
    site.run(fail(site.store, "broken-1"))
    for scripts in (True, False):
        visitor = visit(site, "alice", java_script_enabled=scripts)
        page = visitor.open()
        page.get_by_label("Reason").fill("a duplicate: reject it")
        page.get_by_label("Reason").press("Enter")
        page.get_by_role("link", name="Runs").click()  # after what Enter might have begun
        page.get_by_label("Choose broken-1").check()
        with page.expect_navigation():
            page.get_by_label("Choose broken-1").press("Enter")
        expect(page.get_by_text("nothing was done")).to_be_visible()
        visitor.faults.clear()  # of which the browser says that it was refused
        page.get_by_role("link", name="Runs").click()
        page.get_by_label("Reason").fill("cancel it")
        page.get_by_label("Reason").press("Enter")
        page.get_by_role("link", name="Inbox", exact=True).click()
        expect(page.get_by_text("0 of 1")).to_be_visible()
    assert [entry.status for entry in site.run(site.store.list("broken-1")) if entry.step_id == "pay-back"] == ["failure"]
    page.get_by_role("button", name=re.compile("^Reject")).press("Enter")
    expect(page.get_by_text("Your rejection is recorded")).to_be_visible()


def test_a_run_is_watched_from_start_to_end(site: Site, visit: Visit) -> None:
    """Steps appear while it runs, what it waits for, and its end, without loading the page again; then nothing more is asked."""
    task = site.run(shop.begin_working(site.store, "import-1", until=2))
    visitor = visit(site)
    page = visitor.open("run?run=import-1")
    page.evaluate("window.isSame = true")
    expect(page.get_by_role("row", name=re.compile("part-1.*succeeded"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("go.*waiting"))).to_be_visible()
    page.get_by_text("Id of the new run").click()
    page.keyboard.type("copy-1")
    site.run(control.send(site.store, "import-1", "go", "done, all of it"))
    expect(page.locator(".facts .state")).to_have_text("succeeded")
    expect(page.get_by_role("heading", name="Result")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("go.*succeeded"))).to_be_visible()
    assert page.get_by_label("Id of the new run").input_value() == "copy-1"
    assert page.evaluate("window.isSame")
    assert task.done()
    page.wait_for_function("!document.querySelector('#live')._htmx?.sse", timeout=SECONDS * 1000)


def test_twenty_failed_runs_are_retried_at_once(site: Site, visit: Visit) -> None:
    """All of a page are chosen by one link; each has a line that says what came of it, one that can't be retried too."""
    for number in range(20):
        site.run(fail(site.store, f"broken-{number}"))
    page = visit(site).open("runs?state=failed")
    page.get_by_role("link", name="Choose all 20").click()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(20)
    site.run(control.retry(site.store, "broken-7", by="bob"))  # meanwhile
    page.get_by_label("Reason").fill("the bank is open again")
    go_on(page, "Retry")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("Retry: (19|20) of 20 done"))
    expect(page.locator("ul.lines li")).to_have_count(20)
    record = site.run(site.store.get("broken-3", "pay-back"))
    assert record is not None
    assert (record.status, record.notes["by"], record.notes["reason"]) == ("reopened", "alice", "the bank is open again")


def test_filters_stand_in_the_address(site: Site, visit: Visit) -> None:
    """What is chosen is in the URL, so that it can be sent to others, and is kept from one filter to the next."""
    site.run(shop.open_shop(site.store))
    page = visit(site).open("runs")
    page.get_by_role("link", name=re.compile("^failed")).click()
    page.wait_for_url("**/runs?state=failed")
    page.get_by_label("Id begins with").fill("settle-2026-11-29")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(lambda address: "prefix=settle-2026-11-29" in address and "state=failed" in address)
    expect(page.locator("tbody tr")).to_have_count(1)
    other = visit(site, "bob")
    other.page.goto(page.url)
    expect(other.page.locator("tbody tr")).to_have_count(1)
    expect(other.page.get_by_role("link", name=re.compile("^failed"))).to_have_attribute("aria-current", "true")
    other.open("runs?longer=1h")
    expect(other.page.get_by_text("No run matches these filters")).to_be_visible()


def test_a_page_is_live_however_late_its_scripts_come(site: Site, visit: Visit) -> None:
    """The extension that listens may come long after htmx: what waits is told all the same."""
    visitor = visit(site)

    def late(route: Route) -> None:
        visitor.page.wait_for_timeout(300)
        route.continue_()

    visitor.page.route("**/hx-sse.min.js", late)
    page = visitor.open()
    site.run(ask(site.store, "payout-1"))
    expect(page.get_by_role("link", name="payout-1")).to_be_visible()


def test_a_page_is_live_for_as_long_as_it_is_open(site: Site, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream lasts half a minute, here less; the browser asks for the next one by itself."""
    monkeypatch.setattr(_live, "_LASTS", 0.3)
    asked: list[str] = []
    visitor = visit(site)
    visitor.page.on("request", lambda request: asked.append(request.url) if "/live/" in request.url else None)
    page = visitor.open()
    while len(asked) < 3:
        page.wait_for_event("request", lambda request: "/live/" in request.url)
    site.run(ask(site.store, "payout-1"))
    expect(page.get_by_role("link", name="payout-1")).to_be_visible()


def test_a_tab_that_nobody_looks_at_keeps_no_connection(site: Site, visit: Visit) -> None:
    """A browser has six to a server: the seventh of many runs opened in tabs would wait. Once it is looked at, it is live."""
    visitor = visit(site)
    visitor.page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => !window.isLookedAt})")
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url))
    page = visitor.open()
    page.evaluate("new Promise(requestAnimationFrame)")
    assert len(asked) >= 5
    assert not [url for url in asked if "/live/" in url]
    site.run(ask(site.store, "payout-1"))
    page.evaluate("window.isLookedAt = true; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_role("link", name="payout-1")).to_be_visible()


@pytest.mark.parametrize("kind", SERVERS)
def test_the_stores_server_goes_away_under_an_open_page(visit: Visit, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page stays and says so, what is typed too; once the server is back, the page goes on by itself."""
    monkeypatch.setattr(_live, "_SLOW", 5.0)  # S3's driver tries again for longer than that

    async def opened() -> Store:
        store = await open_store(server.url("logs") if kind == "s3" else server.url).__aenter__()
        if kind == "s3" and (polling := polling_of(store)) is not None:
            polling.poll_seconds = 2.0  # by itself it is twenty
        return store

    with SERVERS[kind]() as server, served(opened) as site:
        site.run(ask(site.store, "payout-1", quorum=2))
        visitor = visit(site)
        page = visitor.open()
        page.get_by_label("Reason").fill("half typed")
        server.kill()
        expect(page.locator("#trouble")).to_contain_text("The store is")
        expect(page.get_by_label("Reason")).to_have_value("half typed")
        server.start()
        expect(page.locator("#trouble")).to_be_empty()
        site.run(control.approve(site.store, "payout-1", "approve", by="bob"))
        expect(page.get_by_text("1 of 2")).to_be_visible()
        expect(page.get_by_label("Reason")).to_have_value("half typed")
        site.run(site.store.__aexit__(None, None, None))  # type: ignore[attr-defined]  # it was opened


def test_the_pages_server_goes_away_under_an_open_page(visit: Visit) -> None:
    """The page stays and says that nothing more will be told."""
    with served(in_memory) as site:
        site.run(ask(site.store, "payout-1"))
        visitor = visit(site)
        page = visitor.open()
        page.wait_for_function("document.querySelector('#live')._htmx?.sse", timeout=SECONDS * 1000)
    expect(page.locator("#trouble")).to_contain_text("the server does not answer")
    expect(page.get_by_role("link", name="payout-1")).to_be_visible()
    assert [fault for fault in visitor.faults if not re.search("net::ERR|network error|Failed to fetch", fault)] == []
    visitor.faults.clear()


@pytest.mark.parametrize("status", [303, 401])
def test_who_is_signed_out_keeps_the_page(visit: Visit, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the application leads to its sign-in, or refuses: the page says so, and shows no sign-in in its middle."""
    monkeypatch.setattr(_live, "_LASTS", 0.3)
    is_in = True

    def user(request: Request) -> User:
        if is_in:
            return User("alice")
        raise HTTPException(status, headers={"location": "/healthz"})

    with served(in_memory, user=user) as site:
        site.run(ask(site.store, "payout-1"))
        visitor = visit(site)
        page = visitor.open()
        is_in = False
        expect(page.locator("#trouble")).to_contain_text("no longer signed in")
        expect(page.get_by_role("link", name="payout-1")).to_be_visible()
        page.close()
        visitor.faults.clear()  # what the browser itself says of such answers


def test_all_is_done_by_keyboard(site: Site, visit: Visit) -> None:
    """The first key leads past the header; from the approval's link on, its form is reached and sent by keys alone."""
    site.run(ask(site.store, "payout-1"))
    page = visit(site).open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()"))
        if page.evaluate("document.activeElement.value") == "approve":
            break
    assert reached[-3:] == ["value", "reason", "answer"]
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("Your approval is recorded")


def test_all_works_without_scripts(site: Site, visit: Visit) -> None:
    """Without JavaScript runs are filtered, chosen, and acted on; only what happens meanwhile is not seen."""
    site.run(ask(site.store, "payout-1"))
    site.run(fail(site.store, "broken-1"))
    page = visit(site, java_script_enabled=False).open()
    go_on(page, "Approve")
    expect(page.get_by_text("Nothing waits for a decision")).to_be_visible()
    page.get_by_role("link", name="Runs").click()
    page.get_by_role("link", name=re.compile("^failed")).click()
    page.get_by_role("link", name="Choose all 1").click()
    go_on(page, "Retry")
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry: 1 of 1 done")


@pytest.fixture(scope="module")
def open_shop() -> Iterator[Site]:
    """A page over runs of every kind, one of them at work."""
    with served(in_memory, secret=SECRET) as site:
        site.run(shop.open_shop(site.store))
        site.run(shop.begin_working(site.store))
        yield site


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("view", [*VIEWS])
def test_a_view_is_sound(open_shop: Site, visit: Visit, view: str, width: int, scheme: str) -> None:
    """It fits, logs no error, runs no script of a log, and keeps to WCAG AA."""
    visitor = visit(open_shop, "alice", width=width, scheme=scheme)
    if view == "link":
        asked = open_shop.run(open_shop.store.get("refund-1001", "approve-refund"))
        assert asked is not None
        page = visitor.open(decision_link(open_shop.url, asked, by="alice", secret=SECRET).removeprefix(open_shop.url))
    else:
        page = visitor.open(VIEWS[view])
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("img, script:not([src])").count() == 0
    assert not re.search("[\u200b-\u200f\u202a-\u202e]", page.locator("body").inner_text())
    found = Axe().run(page, options=STANDARD).response["violations"]
    assert [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]] == []
