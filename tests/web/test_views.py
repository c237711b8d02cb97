"""What the pages show."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any, NoReturn

import pytest

from durable_core import CorruptLog, MemoryStore, Runner, RunSuspended, StepFailed, StepRecord, Store, control, flow, open_store
from durable_core.stores.flows import FLOW
from durable_web import Page, app
from durable_web._views import _reading, inbox, runs
from durable_worker import Worker
from tests.soak.spoiling import spoil
from tests.web import shop
from tests.web.conftest import Browse, signed_in
from tests.web.flows import ask, broken, fail, parcel, trip


async def test_every_page(page: Page, memory: MemoryStore, browse: Browse) -> None:
    """Each page is shown, with nothing in the store too."""
    alice = browse(page, "alice")
    for path in ["", "runs", "work"]:
        assert (await alice.get(path)).status_code == 200


async def test_every_page_of_each_store(store: Store, browse: Browse) -> None:
    """Whatever store it is, each page is shown, and shows its runs."""
    await ask(store)
    await fail(store)
    await parcel.start(store, run_id="parcel-1")
    alice = browse(app(store, user=signed_in), "alice")
    for path, query, what in [
        ("", {}, "payout-1"),
        ("runs", {"state": ["failed", "waiting"]}, "broken-1"),
        ("run", {"run": "broken-1"}, "the bank is closed"),
        ("step", {"run": "payout-1", "step": "approve"}, "amount"),
        ("work", {}, "No worker has recorded a schedule"),
    ]:
        shown = await alice.get(path, **query)
        assert shown.status_code == 200, shown.text
        assert what in shown.text


@pytest.mark.parametrize("field", ["attempt", "kind"])
async def test_runs_that_cannot_be_read_are_told_on_every_page(url: str, browse: Browse, field: str) -> None:
    """Also where a state has no others: the pages show what there is besides, and which log is damaged."""
    async with open_store(url) as store:
        await spoil(url, parcel, "spoilt", field, 0 if field == "attempt" else "later")
        alice = browse(app(store, user=signed_in), "alice")
        for path in ["", "runs", "work"]:
            shown = await alice.get(path)
            assert shown.status_code == 200, shown.text
        shown = await alice.get("runs")
        assert "spoilt" in shown.text


class OnlyDamage(MemoryStore):
    """Has an index in which nothing can be read."""

    async def flows(self, *_: Any, **__: Any) -> NoReturn:
        raise CorruptLog("the log of run 'spoilt' is damaged")


async def test_an_index_in_which_nothing_can_be_read(browse: Browse) -> None:
    """The pages say so, where they show what it would hold."""
    alice = browse(app(OnlyDamage(), user=signed_in), "alice")
    for path in ["", "runs", "work"]:
        shown = await alice.get(path)
        assert (shown.status_code, "the log of run &#39;spoilt&#39; is damaged" in shown.text) == (200, True), shown.text


async def test_static_files(page: Page, browse: Browse) -> None:
    """They need no account, have the type that a browser wants, and are sent once."""
    nobody = browse(page)
    for name, kind in [("durable.css", "text/css"), ("htmx.min.js", "text/javascript"), ("htmx-LICENSE.txt", "text/plain")]:
        sent = await nobody.get(f"static/{name}")
        assert (sent.status_code, sent.headers["content-type"].partition(";")[0]) == (200, kind)
        again = await nobody.client.get(f"{nobody.base}/static/{name}", headers={"if-none-match": sent.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def runs_in(html: str) -> list[str]:
    """Return the runs of a list, as it has them."""
    return re.findall(r'<td role="cell" class="first"><a class="id" href="[^"]*run\?run=[^"]*">([^<]*)</a>', html)


async def test_runs_are_filtered_by_the_url(memory: MemoryStore, browse: Browse) -> None:
    """By state, several too, by flow, by what ids begin with, by when they began, and by how long they have waited."""
    now = datetime.now(UTC)
    for name, status, hours in [("a-1", "waiting", 5), ("a-2", "failure", 4), ("b-1", "success", 3), ("b-2", "waiting", 0)]:
        at = now - timedelta(hours=hours)
        fields: Any = {"status": status, "name": f"flow-{name[0]}", "started_at": at, "ended_at": at}
        await memory.append(StepRecord(run_id=name, step_id=FLOW, kind="flow", **fields))
    alice = browse(app(memory, user=signed_in), "alice")
    for query, found in [
        ({}, ["b-2", "b-1", "a-2", "a-1"]),
        ({"state": "waiting"}, ["b-2", "a-1"]),
        ({"state": ["waiting", "failed"]}, ["b-2", "a-2", "a-1"]),
        ({"flow": "flow-b"}, ["b-2", "b-1"]),
        ({"prefix": "a-"}, ["a-2", "a-1"]),
        ({"since": "210m"}, ["b-2", "b-1"]),
        ({"longer": "1h"}, ["a-1"]),
        ({"longer": "1h", "state": ["waiting", "failed"]}, ["a-2", "a-1"]),
        ({"state": "parked"}, []),
    ]:
        assert runs_in((await alice.get("runs", **query)).text) == found, query
    for query in ({"since": "soon"}, {"longer": "-1h"}, {"longer": "٣h"}, {"before": "now"}):
        assert (await alice.get("runs", **query)).status_code == 400


ODD = {"NUL": "\0", "a NUL in it": "a\0b", "percent": "%", "star": "*", "glob": "?[", "underscore": "_", "backslash": "\\"}
ODD |= {"SQL": "' or 1=1 --", "last": "\U0010ffff", "long": "x" * 600, "path": "../"}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
async def test_filters_that_nothing_is_like(store: Store, browse: Browse, text: str) -> None:
    """On each store: what is no id and no name finds nothing, and is no fault of the store."""
    await ask(store)
    await fail(store)
    alice = browse(app(store, user=signed_in), "alice")
    for path, query in [
        ("", {"prefix": text}),
        ("runs", {"prefix": text}),
        ("runs", {"flow": text, "state": "failed"}),
        ("runs", {"state": "open", "prefix": text}),
        ("runs", {"before": f"2020-01-01T00:00:00+00:00 {text}"}),
    ]:
        shown = await alice.get(path, **query)
        assert (shown.status_code, "run=payout-1" in shown.text) == (400 if "\0" in text else 200, False), shown.text


async def test_a_length_of_time_from_before_all_calendars(memory: MemoryStore, browse: Browse) -> None:
    """Nothing waits for so long, and everything began within it."""
    await ask(memory)
    alice = browse(app(memory, user=signed_in), "alice")
    for path, query, found in [
        ("", {"longer": "999999w"}, False),
        ("runs", {"longer": "999999w"}, False),
        ("runs", {"since": "999999w"}, True),
    ]:
        shown = await alice.get(path, **query)
        assert (shown.status_code, "run=payout-1" in shown.text) == (200, found)


async def test_runs_come_in_pages(memory: MemoryStore, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page leads to the next one, with the filter kept, and counts tell how many there are of each state."""
    monkeypatch.setattr(runs, "_PAGE", 3)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(8):
        at = began + timedelta(seconds=number)
        await memory.append(StepRecord(run_id=f"run-{number}", step_id=FLOW, kind="flow", name="f", started_at=at, ended_at=at))
    alice = browse(app(memory, user=signed_in), "alice")
    found: list[str] = []
    address = "/runs?state=succeeded&flow=f"
    while address:
        shown = (await alice.client.get(f"{alice.base}{address}".replace("&amp;", "&"))).text
        assert re.search(r'aria-current="true">succeeded <span class="count">8<', shown)
        assert "States without a number are not counted" in shown
        found += runs_in(shown)
        older = re.search(r'href="([^"]*)" rel="next"', shown)
        address = older[1] if older else ""
        assert "state=succeeded" in address or not address
    assert found == [f"run-{number}" for number in range(7, -1, -1)]
    monkeypatch.setattr(runs, "_PAGE", 50)
    shown = (await alice.get("runs")).text
    assert ('waiting <span class="count">0<' in shown, "not counted" in shown) == (True, False)


async def test_runs_without_a_flow_of_many_runs(memory: MemoryStore, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shown, and what they ask; where there are very many runs only on demand, and the page says so."""
    with suppress(RunSuspended):
        async with Runner(memory, "plain", wait_limit=0) as runner:
            await runner.approval("sure", {"of": "it"})
    await ask(memory)
    alice = browse(app(memory, user=signed_in), "alice")
    for path in ("", "runs"):
        assert "left out" not in (shown := (await alice.get(path)).text)
        assert "plain" in shown
    monkeypatch.setattr(_reading, "_FEW", 1)
    for path in ("", "runs"):
        assert "those without a flow are left out" in (shown := (await alice.get(path)).text)
        assert "run=plain" not in shown
        assert "run=plain" in (await alice.get(path, plain=1)).text
    assert runs_in((await alice.get("runs", state="open")).text) == ["plain"]


async def test_what_others_made_of_a_value_is_shown(memory: MemoryStore, browse: Browse) -> None:
    """Who decides next sees the value that an earlier vote gave, and not the one that is asked for alone."""
    await ask(memory, quorum=2)
    await control.approve(memory, "payout-1", "approve", by="bob", value={"amount": 4711})
    for path in ("", "step"):
        shown = await browse(app(memory, user=signed_in), "alice").get(path, run="payout-1", step="approve")
        assert re.search(r"<strong>bob</strong>.*with this value:\s*<table.*4711", shown.text, re.DOTALL)


async def test_what_waits_comes_oldest_first(memory: MemoryStore, browse: Browse) -> None:
    """And is filtered by who may decide, by what run ids begin with, and by how long it waits."""
    await ask(memory, "b-1", approvers=["bob"])
    await ask(memory, "a-1")
    await ask(memory, "a-2", quorum=2)
    await control.approve(memory, "a-2", "approve", by="alice")
    alice = browse(app(memory, user=signed_in), "alice")

    async def asked(**query: Any) -> list[str]:
        return re.findall(r"<h2><a[^>]*run=([^&]*)&", (await alice.get("", **query)).text)

    assert await asked() == ["b-1", "a-1", "a-2"]
    assert await asked(mine=1) == ["a-1"]
    assert await asked(prefix="b") == ["b-1"]
    assert await asked(longer="1h") == []
    shown = (await alice.get()).text
    assert "Only bob may decide this" in shown
    assert "1 more answer is needed" in shown
    assert shown.count('name="answer" value="approve"') == 1


async def test_of_very_many_approvals_the_oldest_are_shown(
    memory: MemoryStore, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are counted, also those for the visitor, and those that have waited longest are never left out."""
    monkeypatch.setattr(inbox, "_MOST", 3)
    for number in range(8):
        await ask(memory, f"run-{number}", approvers=["alice"] if number % 2 else None)
    shown = (await browse(app(memory, user=signed_in), "bob").get()).text
    assert re.findall(r"<h2><a[^>]*run=([^&]*)&", shown) == ["run-0", "run-1", "run-2"]
    assert "8 wait for a decision, oldest first; 4 of them wait for you. The 3 that have waited longest are shown." in shown


async def test_only_what_would_do_something_is_offered(memory: MemoryStore, browse: Browse) -> None:
    """A run that ended is not cancelled, one that goes on is not cleaned, and readers are offered nothing."""
    await ask(memory)
    await fail(memory)
    await parcel.options(wait_limit=0).start(memory, run_id="parcel-1")
    alice = browse(app(memory, user=signed_in), "alice")
    reader = browse(app(memory, user=signed_in, access=lambda user: "read"), "rita")
    for query, offered in [
        ({"path": "run", "run": "payout-1"}, {"cancel", "fork"}),
        ({"path": "run", "run": "broken-1"}, {"retry", "fork", "clean"}),
        ({"path": "step", "run": "broken-1", "step": "pay-back"}, {"retry", "resolve"}),
        ({"path": "step", "run": "payout-1", "step": "look-up"}, set()),
        ({"path": "step", "run": "payout-1", "step": "approve"}, {"decide"}),
        ({"path": "runs"}, {"bulk"}),
    ]:
        asked = dict(query)
        path = asked.pop("path")
        assert {*re.findall(r'action="/act/([a-z]+)"', (await alice.get(path, **asked)).text)} == offered, query
        assert (await reader.get(path, **asked)).status_code == 200
        assert '<form method="post"' not in (await reader.get(path, **asked)).text


async def test_nothing_is_retried_that_would_be_refused(memory: MemoryStore, browse: Browse) -> None:
    """A run that undid its work can only be forked, and the page says why; a failure in a run that succeeded stays."""
    await trip.run(memory, run_id="trip-1", forgives=True)
    with pytest.raises(StepFailed):
        await trip.run(memory, run_id="trip-2")
    alice = browse(app(memory, user=signed_in), "alice")
    for query, offered in [
        ({"path": "step", "run": "trip-1", "step": "car"}, set()),
        ({"path": "step", "run": "trip-2", "step": "car"}, set()),
        ({"path": "run", "run": "trip-2"}, {"fork", "clean"}),
    ]:
        asked = dict(query)
        shown = (await alice.get(asked.pop("path"), **asked)).text
        assert {*re.findall(r'action="/act/([a-z]+)"', shown)} == offered, query
    assert re.search(r"answered the failure with <a [^>]*>undo-hotel</a>, so its work may be undone", shown)


async def test_a_late_request_to_stop_is_not_why_a_run_failed(memory: MemoryStore, browse: Browse) -> None:
    """The reason of a request to stop stands by that name in a run that ended otherwise."""

    async def ask_too_late() -> None:
        await control.cancel(memory, "trip-1", reason="the customer is ill")
        raise ConnectionError("no car is left")

    @flow
    async def late(runner: Runner) -> None:
        await runner.step("car", ask_too_late)

    with pytest.raises(StepFailed):
        await late.run(memory, run_id="trip-1")
    assert (await control.status(memory, "trip-1")).status == "failed"
    shown = (await browse(app(memory, user=signed_in), "alice").get("run", run="trip-1")).text
    assert re.search(r"<dt>Asked to stop</dt><dd>[^<]*the customer is ill", shown)
    assert "<dt>Why</dt>" not in shown


async def test_schedules_show_their_next_ticks(store: Store, browse: Browse) -> None:
    """As a worker records them, with the zone; what is parked shows what would help, and runs at work who holds them."""
    worker = Worker(store, [broken])
    worker.cron("0 9 * * 1-5", broken, name="settle", timezone="Europe/Berlin")
    await worker.sweep()
    task = await shop.begin_working(store)
    shown = (await browse(app(store, user=signed_in), "alice").get("work")).text
    assert "<code>0 9 * * 1-5</code>" in shown
    assert "Europe/Berlin" in shown
    assert re.search(r'Next tick"><time[^>]*>in ', shown)
    assert "import-1" in shown
    await control.send(store, "import-1", "go", "x")
    await task


class Tags(HTMLParser):
    """Gathers which elements and attributes a page has, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an element."""
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


async def test_hostile_text_is_shown_harmlessly(memory: MemoryStore, browse: Browse) -> None:
    """In each field that a log has: no element or attribute comes of it, and what would turn or hide text is visible."""
    await shop.open_shop(memory)
    run = f"hostile {shop.HOSTILE}"
    page = app(memory, user=signed_in, title=shop.HOSTILE)
    alice, other = browse(page, "alice"), browse(page, shop.HOSTILE.encode("ascii", "ignore").decode())
    pages: list[tuple[str, dict[str, Any]]] = [
        ("", {}),
        ("runs", {"flow": shop.HOSTILE, "prefix": shop.HOSTILE}),
        ("runs", {}),
        ("run", {"run": run}),
        *(("step", {"run": run, "step": step}) for step in ("value", "progress", "ask", f"step {shop.HOSTILE.strip()}")),
        ("step", {"run": run, "step": shop.HOSTILE}),
    ]
    assert "<textarea" in (await alice.get("step", run=run, step="ask")).text
    for path, query in pages:
        shown = await (alice if query else other).get(path, **query)
        tags = Tags(shown.text)
        assert "img" not in tags.tags
        assert not {name for name in tags.attributes if name.startswith("on") or name in ("style", "srcdoc")}
        without_fields = re.sub(r'(value|placeholder)="[^"]*"', "", shown.text)
        assert not re.search("[\u200b-\u200f\u202a-\u202e]", without_fields), (path, query)
        assert "\\u202e" in shown.text
