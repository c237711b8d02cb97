"""What others try: each is refused, and nothing is done."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from html import unescape
from typing import Any

import httpx
import pytest
from itsdangerous import TimestampSigner
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from durable_core import MemoryStore, control
from durable_web import Access, Page, User, app, decision_link
from tests.web.conftest import Browse, signed_in
from tests.web.flows import ask, fail

SECRET = "a secret of the tests"
DAY = 86_400
ACTIONS: dict[str, dict[str, Any]] = {
    "act/decide": {"run": "payout-1", "step": "approve", "answer": "approve", "mark": "none"},
    "act/retry": {"run": "broken-1"},
    "act/cancel": {"run": "payout-1"},
    "act/fork": {"run": "payout-1", "step": "approve", "new_run": "payout-2"},
    "act/resolve": {"run": "broken-1", "step": "pay-back", "value": "1", "reason": "paid"},
    "act/send": {"run": "parcel-1", "step": "packed", "value": "1"},
    "act/clean": {"run": "broken-1"},
    "act/bulk": {"verb": "retry", "run": ["broken-1", "payout-1"]},
}
"""Every action, with a form that would do something."""

every_action = pytest.mark.parametrize("action", ACTIONS)


@pytest.fixture
async def memory() -> MemoryStore:
    """A store with a run that waits for people, and one that failed."""
    store = MemoryStore()
    await ask(store)
    await fail(store)
    return store


Check = Callable[[], Awaitable[None]]


@pytest.fixture
async def unchanged(memory: MemoryStore) -> Check:
    """Return what sees that nothing was done to any run since."""

    async def log() -> list[Any]:
        return [record async for run_id in memory.runs() for record in await memory.list(run_id)]

    before = await log()

    async def check() -> None:
        assert await log() == before

    return check


def test_every_action_is_tried(page: Page) -> None:
    """An action that is new stands in the table above."""
    routes = [route for route in page._app.routes if isinstance(route, Route) and "POST" in (route.methods or ())]
    assert {route.path.lstrip("/") for route in routes} == {*ACTIONS, "decide"}


@every_action
async def test_without_an_attack_it_is_done(page: Page, memory: MemoryStore, browse: Browse, action: str) -> None:
    """Lest the others be refused for another reason: only the mark of the question is wrong here."""
    answer = await browse(page, "alice").post(action, **ACTIONS[action])
    assert answer.status_code == (409 if action == "act/decide" else 200 if action == "act/bulk" else 303), answer.text


@every_action
@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "Same-Origin", ""])
async def test_another_site_posts(page: Page, browse: Browse, unchanged: Check, action: str, site: str) -> None:
    """A form on another site, or on a sibling domain, carries the visitor's cookies, and does nothing."""
    alice = browse(page, "alice")
    answer = await alice.post(action, **ACTIONS[action], headers={"sec-fetch-site": site, "origin": "https://ops.example.com"})
    assert (answer.status_code, "another site" in answer.text) == (403, True)
    await unchanged()


@every_action
@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://ops.example.com.evil.example", "https://ops.example.com:8443", "null", "https://[", None],
)
async def test_a_forged_origin(page: Page, browse: Browse, unchanged: Check, action: str, origin: str | None) -> None:
    """A browser without `Sec-Fetch-Site` is told by `Origin`; without either nothing is done."""
    alice = browse(page, "alice")
    token = await alice.token()
    sent = {"content-type": "application/x-www-form-urlencoded", **({"origin": origin} if origin else {})}
    answer = await alice.client.post(f"{alice.base}/{action}", data={**ACTIONS[action], "token": token}, headers=sent)
    assert (answer.status_code, "another site" in answer.text) == (403, True)
    await unchanged()


async def test_an_older_browser(page: Page, memory: MemoryStore, browse: Browse) -> None:
    """One that sends the page's own `Origin` alone may act."""
    alice = browse(page, "alice")
    data = {"run": "payout-1", "token": await alice.token()}
    answer = await alice.client.post(f"{alice.base}/act/cancel", data=data, headers={"origin": "https://ops.example.com"})
    assert answer.status_code == 303


@every_action
async def test_no_token_and_others(memory: MemoryStore, browse: Browse, unchanged: Check, action: str) -> None:
    """No token, one of another user, of another page, and one that was changed."""
    page, other = (app(memory, user=signed_in) for _ in range(2))
    alice = browse(page, "alice")
    mine = await alice.token()
    changed = mine[:-2] + ("A" if mine[-2] != "A" else "B") + mine[-1]
    for token in ["", "x", changed, await browse(page, "bob").token(), await browse(other, "alice").token()]:
        answer = await alice.post(action, **ACTIONS[action], token=token)
        assert (answer.status_code, "reload it" in answer.text) == (403, True)
    await unchanged()


async def test_a_token_of_yesterday(page: Page, browse: Browse, unchanged: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was opened more than a day ago has to be loaded again."""
    alice = browse(page, "alice")
    token = await alice.token()
    now = TimestampSigner.get_timestamp(TimestampSigner(SECRET))
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: now + DAY + 60)
    assert (await alice.post("act/cancel", run="payout-1", token=token)).status_code == 403
    await unchanged()


@every_action
async def test_get_on_an_action(page: Page, browse: Browse, unchanged: Check, action: str) -> None:
    """A link, an image or a scanner does nothing, with a token in the query too."""
    alice = browse(page, "alice")
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"]:
        answer = await alice.client.request(
            method, f"{alice.base}/{action}", params={**ACTIONS[action], "token": await alice.token()}
        )
        assert answer.status_code == 405
    await unchanged()


@every_action
@pytest.mark.parametrize("access", ["read", "decide", None])
async def test_who_may_not(memory: MemoryStore, browse: Browse, unchanged: Check, action: str, access: Access | None) -> None:
    """A reader posts, and somebody who may only decide does more; the token alone gives no right."""
    may: dict[str, Access | None] = {"alice": access, "root": "all"}
    page = app(memory, user=signed_in, access=lambda user: may[user.name])
    alice = browse(page, "alice")
    token = page._site.tokens.for_forms("alice")
    answer = await alice.post(action, **ACTIONS[action], token=token)
    assert answer.status_code == (409 if (action, access) == ("act/decide", "decide") else 403)
    shown = await alice.get("run", run="broken-1")
    assert shown.status_code == (200 if access else 403)
    assert 'method="post"' not in shown.text
    await unchanged()


async def test_nobody(page: Page, browse: Browse, unchanged: Check) -> None:
    """Who is not signed in sees no run, and does nothing, whatever is asked for."""
    nobody = browse(page)
    for route in page._app.routes:
        if isinstance(route, Route) and not route.path.startswith(("/healthz", "/decide", "/static/")):
            for method in route.methods or ():
                headers = {"sec-fetch-site": "same-origin"}
                answer = await nobody.client.request(
                    method, nobody.base + route.path, params={"run": "payout-1"}, headers=headers
                )
                assert (answer.status_code, "payout" in answer.text) == (401, False), route.path
    await unchanged()


async def test_who_may_see_nothing(memory: MemoryStore, browse: Browse, unchanged: Check) -> None:
    """Somebody who is signed in, and to whom `access=` gives nothing, sees no run by any path: pages, streams and numbers too."""
    page = app(memory, user=signed_in, access=lambda user: None, secret=SECRET)
    alice = browse(page, "alice")
    (asked,) = [record async for record in control.pending(memory)]
    link = decision_link("https://ops.example.com", asked, by="alice", secret=SECRET)
    assert (await alice.client.get(link)).status_code == 403
    for route in page._app.routes:
        assert isinstance(route, Route)
        answer = await alice.get(route.path.lstrip("/"), run="payout-1", step="approve")
        is_open = route.path.startswith(("/healthz", "/static/"))
        assert answer.status_code == (200 if is_open else 405 if route.methods == {"POST"} else 403), route.path
        assert "payout-1" not in answer.text
        assert "durable_runs" not in answer.text
    await unchanged()


async def test_what_they_may_is_asked_each_time(memory: MemoryStore, browse: Browse) -> None:
    """Somebody who was let go does nothing from a page that is still open."""
    may: dict[str, Access | None] = {"alice": "all"}
    alice = browse(app(memory, user=signed_in, access=lambda user: may[user.name]), "alice")
    token = await alice.token()
    may["alice"] = None
    assert (await alice.post("act/cancel", run="payout-1", token=token)).status_code == 403
    assert (await control.status(memory, "payout-1")).status == "waiting"


@pytest.mark.parametrize("field", ["by", "user", "name", "by_link"])
async def test_another_name_in_the_form(page: Page, memory: MemoryStore, browse: Browse, field: str) -> None:
    """Who acts is who is signed in, whatever the form says."""
    alice = browse(page, "alice")
    await alice.post("act/cancel", run="payout-1", **{field: "bob"})
    assert (await memory.get("payout-1", "$flow")).notes["cancelled"]["by"] == "alice"  # type: ignore[union-attr]  # it is there


@pytest.mark.parametrize("name", ["$deadline", "", "a\nb", "\u202ealice"])
async def test_a_name_that_is_none(memory: MemoryStore, browse: Browse, unchanged: Check, name: str) -> None:
    """What the library would refuse to record, or a reader couldn't tell from another's, is nobody's name."""
    page = app(memory, user=lambda request: User(name))
    assert (await browse(page, "alice").get("runs")).status_code == 500
    await unchanged()


@every_action
@pytest.mark.parametrize("told", [True, False])
async def test_a_body_of_100_mb(page: Page, unchanged: Check, action: str, told: bool) -> None:
    """It is refused by its length before any of it is read, or, where that isn't told, once a megabyte was."""
    size = 100 << 20
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1 << 16
        return {"type": "http.request", "body": b"x" * (1 << 16), "more_body": read < size}

    status = 0

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    headers = {
        "x-user": "alice",
        "host": "t",
        "sec-fetch-site": "same-origin",
        "content-type": "application/x-www-form-urlencoded",
    }
    if told:
        headers["content-length"] = str(size)
    scope = {
        "type": "http", "method": "POST", "path": f"/{action}", "raw_path": b"", "root_path": "", "query_string": b"",
        "scheme": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "http_version": "1.1",
    }  # fmt: skip
    await page(scope, receive, send)
    assert status == 413
    assert read <= (0 if told else (1 << 20) + (1 << 16))
    await unchanged()


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"run=payout-1", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("application/json", b"{}", 415),
        ("application/x-www-form-urlencoded", b"run=%ff", 400),
        ("application/x-www-form-urlencoded", b"run=\xff", 400),
        ("application/x-www-form-urlencoded", b"&".join([b"run=a"] * 1001), 400),
    ],
    ids=["text", "multipart", "json", "no UTF-8", "bytes", "fields"],
)
async def test_what_is_no_form(page: Page, browse: Browse, unchanged: Check, kind: str, body: bytes, status: int) -> None:
    """Only a form is read, in UTF-8, with a bounded number of fields."""
    alice = browse(page, "alice")
    headers = {"sec-fetch-site": "same-origin", "content-type": kind}
    assert (await alice.client.post(f"{alice.base}/act/cancel", content=body, headers=headers)).status_code == status
    await unchanged()


PATHS = [
    *("..", "../", "../secret", "%2e%2e/secret", "..%2fsecret", "//evil.example", "%2f%2fevil.example", "static", "static/"),
    *("static/../page.py", "static/%2e%2e/page.py", "static/..%2fpage.py", "static//etc/passwd", "static/%2fetc%2fpasswd"),
    *("static/..\\page.py", "static/%00", "static/htmx.min.js/..", "runs/", "run/payout-1", "\\evil.example", ".%00"),
]


@pytest.mark.parametrize("path", PATHS)
async def test_path_tricks_under_a_mount(page: Page, browse: Browse, path: str) -> None:
    """No path leads out of the folder of static files, to another site, or to anything but the page itself."""
    host = Starlette(routes=[Mount("/durable", page)])
    alice = browse(host, "alice")
    answer = await alice.client.get(httpx.URL("https://ops.example.com", raw_path=f"/durable/{path}".encode()))
    assert answer.status_code in (400, 404)
    assert "location" not in answer.headers
    assert "Starlette" not in answer.text
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/a//b", "https://evil.example", '/"><script>', "/a?b", "/\\evil", "tools", "/"]
)
async def test_a_prefix_that_is_none(page: Page, browse: Browse, prefix: str) -> None:
    """A header that names no path changes no link."""
    shown = await browse(page, "alice").client.get("https://ops.example.com/runs", headers={"x-forwarded-prefix": prefix})
    assert 'href="/runs"' in shown.text
    assert "evil" not in shown.text
    assert '"><script>' not in shown.text


async def test_every_answer_keeps_to_itself(page: Page, browse: Browse) -> None:
    """Pages, refusals and static files allow no script of others, no frame, and nothing that is guessed; pages aren't kept."""
    alice = browse(page, "alice")
    for path in ["", "runs", "run?run=broken-1", "nowhere", "static/durable.css", "act/retry", "healthz", "decide"]:
        headers = (await alice.client.get(f"{alice.base}/{path}")).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "base-uri 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store" or path.startswith("static")


_POSTED = re.compile(r'value="[^"]*"')
HOSTILE = "<script>alert(1)</script>\u202e\"'{{7*7}}&amp;\u2066x"


async def test_hostile_text_in_every_field(memory: MemoryStore, browse: Browse) -> None:
    """Ids, what is shown, names, reasons, values, errors and filters are text, and marks that turn text are shown as such."""
    run = HOSTILE[:200]
    await ask(memory, run, approvers=[HOSTILE, "alice"], quorum=2)
    await control.approve(memory, run, "approve", by=HOSTILE, reason=HOSTILE, value=HOSTILE)
    await control.send(memory, run, HOSTILE, {HOSTILE: [HOSTILE]}, by=HOSTILE)
    await control.cancel(memory, run, reason=HOSTILE, by=HOSTILE)
    alice = browse(app(memory, user=signed_in, title=HOSTILE), "alice")
    for path, query in {
        "": {"prefix": HOSTILE, "said": HOSTILE},
        "runs": {"flow": HOSTILE, "prefix": run, "before": HOSTILE},
        "run": {"run": run, "said": HOSTILE},
        "step": {"run": run, "step": HOSTILE},
        "decide": {"link": HOSTILE},
        "work": {"x": HOSTILE},
    }.items():
        for asked in (query, {**query, "since": HOSTILE}):
            shown = _POSTED.sub("", (await alice.get(path, **asked)).text)
            assert "<script>" not in shown
            assert "{{7*7}}" in shown or HOSTILE[:20] not in unescape(shown)
            assert not {"\u202e", "\u2066"} & {*shown}
    answer = await alice.post("act/bulk", verb="retry", run=[run, HOSTILE], reason=HOSTILE)
    assert answer.status_code == 200
    assert "<script>" not in answer.text
