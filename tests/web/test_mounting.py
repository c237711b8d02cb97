"""The page under a path of another application, and behind proxies."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from durable_core import MemoryStore, StepRecord
from durable_web import Page, User, app
from tests.web.conftest import Browse, signed_in
from tests.web.flows import ask

_LINK = re.compile(r'(?:href|src|action)="([^"#]+)"')


def fastapi(page: Page) -> Any:
    host = FastAPI()
    host.mount("/durable", page)
    return host


def nested(page: Page) -> Any:
    return Starlette(routes=[Mount("/tools", routes=[Mount("/durable", page)])])


@pytest.mark.parametrize(
    ("mount", "root_path", "prefix", "asked", "base"),
    [
        (None, "", None, "", ""),
        (fastapi, "", None, "/durable", "/durable"),
        (nested, "", None, "/tools/durable", "/tools/durable"),
        (None, "/ops", None, "/ops", "/ops"),  # uvicorn --root-path /ops
        (fastapi, "/ops", None, "/ops/durable", "/ops/durable"),
        (None, "", "/ops", "", "/ops"),  # a proxy that cuts the prefix off, and says so
        (fastapi, "", "/ops", "/durable", "/ops/durable"),
        (fastapi, "", "/ops/", "/durable", "/ops/durable"),
        (fastapi, "/ops", "/ops", "/ops/durable", "/ops/durable"),  # one that is told in both ways counts once
    ],
)
async def test_every_link_stays_below_the_page(
    page: Page, memory: MemoryStore, browse: Browse, mount: Any, root_path: str, prefix: str | None, asked: str, base: str
) -> None:
    """Links, static files, forms and redirects lead to where the page is for the visitor."""
    await ask(memory)
    alice = browse(mount(page) if mount else page, "alice", root_path=root_path)
    alice.base = f"https://ops.example.com{asked}"
    if prefix:
        alice.client.headers["x-forwarded-prefix"] = prefix
    for path in ["", "runs", "work", "run?run=payout-1", "step?run=payout-1&step=approve", "nowhere"]:
        shown = await alice.client.get(f"{alice.base}/{path}")
        links = {unescape(link) for link in _LINK.findall(shown.text)}
        assert len(links) >= 4
        for link in links:
            assert link.startswith(f"{base}/"), link
            there = await alice.client.get(alice.base + link.removeprefix(base))
            assert there.status_code in (200, 405), link
    answer = await alice.post("act/cancel", run="payout-1")
    assert urlsplit(answer.headers["location"]).path == f"{base}/run"


async def test_the_session_of_the_application(memory: MemoryStore, browse: Browse) -> None:
    """`user=` sees what the host's middleware put into the request, and may send people to its sign-in."""

    async def user(request: Request) -> User:
        from starlette.exceptions import HTTPException

        if name := request.session.get("name"):
            return User(name)
        raise HTTPException(303, headers={"location": "/login"})

    async def login(request: Request) -> RedirectResponse:
        request.session["name"] = "alice"
        return RedirectResponse("/durable/", 303)

    host = Starlette(
        routes=[Route("/login", login), Mount("/durable", app(memory, user=user))],
        middleware=[Middleware(SessionMiddleware, secret_key="for this test")],
    )
    alice = browse(host)
    sent = await alice.get("durable/")
    assert (sent.status_code, sent.headers["location"]) == (303, "/login")
    sent = await alice.get("login")
    assert "alice" in (await alice.client.get(f"{alice.base}{sent.headers['location']}")).text


async def test_a_page_without_accounts_under_a_mount(memory: MemoryStore, browse: Browse) -> None:
    """On a developer's machine: the session's cookie is sent to the page alone."""
    page = app(memory)
    me = browse(fastapi(page), base="http://127.0.0.1:8000")
    link = page.one_time_link("http://127.0.0.1:8000/durable/")
    assert link is not None
    entered = await me.client.get(link)
    assert (entered.headers["location"], "Path=/durable;" in entered.headers["set-cookie"]) == ("/durable/", True)
    assert (await me.get("durable/")).status_code == 200


async def test_the_lifespan_of_the_application(memory: MemoryStore) -> None:
    """`FastAPI(lifespan=page.lifespan)` has the page tell of new approvals."""
    told: list[StepRecord] = []
    page = app(memory, user=signed_in, notify=told.append)
    host = FastAPI(lifespan=page.lifespan)
    host.mount("/durable", page)
    await ask(memory)
    import asyncio

    async with host.router.lifespan_context(host), asyncio.timeout(30):
        while not told:
            await asyncio.sleep(0.01)
    assert told[0].run_id == "payout-1"


async def test_two_pages_of_two_stores(browse: Browse) -> None:
    """Each has its own runs, tokens and title."""
    stores = {"one": MemoryStore(), "two": MemoryStore()}
    for name, store in stores.items():
        await ask(store, f"payout-{name}")
    host = Starlette(routes=[Mount(f"/{name}", app(store, user=signed_in, title=name)) for name, store in stores.items()])
    alice = browse(host, "alice")
    shown = (await alice.get("one/")).text
    assert ("payout-one" in shown, "payout-two" in shown, "<title>Inbox · one</title>" in shown) == (True, False, True)
    token = await alice.token("one/runs")
    assert (await alice.post("two/act/cancel", run="payout-two", token=token)).status_code == 403
