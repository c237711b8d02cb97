"""What the tests of the page share: every store, and a browser without a screen or scripts."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from html import unescape
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from starlette.requests import Request

from durable_core import MemoryStore, StepRecord
from durable_web import Page, User, app
from durable_web._asked import asked_by
from durable_web._door import Door
from durable_web._views import _reading
from tests.every_store.conftest import (
    ministack_server,
    opened,
    postgres_server_url,
    postgres_url,
    redis_server_url,
    redis_url,
    s3_credentials,
    s3_url,
    store,
    url,
)

__all__ = [
    "ministack_server",
    "opened",
    "postgres_server_url",
    "postgres_url",
    "redis_server_url",
    "redis_url",
    "s3_credentials",
    "s3_url",
    "store",
    "url",
]

HOST = "https://ops.example.com"
_FIELD = re.compile(r'<input type="hidden" name="token" value="([^"]*)">')


def signed_in(request: Request) -> User | None:
    """Say who visits as a host application would: here by a header."""
    name = request.headers.get("x-user")
    return User(name) if name else None


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a store is slow, and no page should say so for that."""
    monkeypatch.setattr(Door, "seconds", 120.0)
    monkeypatch.setattr(_reading, "_SECONDS", 120.0)


class Browser:
    """Opens pages and posts their forms, as one person, from one origin."""

    def __init__(self, client: httpx.AsyncClient, base: str, page: Any) -> None:
        self.client = client
        self.base = base
        self.page = page

    async def get(self, path: str = "", /, **query: Any) -> httpx.Response:
        """Open a page."""
        return await self.client.get(f"{self.base}/{path}{'?' if query else ''}{urlencode(query, doseq=True)}")

    async def token(self, path: str = "", /, **query: Any) -> str:
        """Return the token that the forms of a page carry."""
        page = await self.get(path or "runs", **query)
        found = _FIELD.search(page.text)
        assert found, page.text
        return unescape(found[1])

    def mark(self, record: StepRecord) -> str:
        """Return what stands for an approval in the page's forms."""
        return str(self.page._site.tokens.mark(asked_by(record).digest))

    async def post(self, path: str, /, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """Post a form of the page's own, with its token unless another is given."""
        if "token" not in fields:
            fields["token"] = await self.token()
        sent = {"sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded", **(headers or {})}
        return await self.client.post(f"{self.base}/{path}", content=urlencode(fields, doseq=True), headers=sent)


Browse = Callable[..., Browser]


@pytest.fixture
async def browse() -> AsyncIterator[Browse]:
    """Open a page's browser: `browse(page, "alice")`, or without a name for somebody who is not signed in."""
    async with AsyncExitStack() as stack:

        def open_browser(page: Any, name: str | None = None, *, base: str = HOST, root_path: str = "") -> Browser:
            transport = httpx.ASGITransport(page, root_path=root_path, client=("127.0.0.1", 50_000))
            client = httpx.AsyncClient(transport=transport, headers={"x-user": name} if name else {})
            stack.push_async_callback(client.aclose)
            return Browser(client, base + root_path, page)

        yield open_browser


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def page(memory: MemoryStore) -> Page:
    """A page over one store in memory, whose visitors say who they are by a header."""
    return app(memory, user=signed_in)
