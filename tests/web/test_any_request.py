"""Whatever is sent, the page answers, with a page of its own, and no fault of it."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from durable_core import MemoryStore
from durable_web import Page, app
from durable_web._tokens import Tokens
from tests.web.conftest import signed_in
from tests.web.flows import ask, fail

SECRET = "a secret of the tests"
PATHS = ["/", "/runs", "/run", "/step", "/work", "/metrics", "/healthz", "/decide", "/nowhere"]
ACTIONS = [f"/act/{verb}" for verb in ("decide", "retry", "cancel", "fork", "resolve", "send", "clean", "bulk")]
NAMES = ["run", "step", "state", "flow", "prefix", "since", "longer", "before", "said", "page", "link", "verb", "answer", "mark"]
NAMES += ["value", "reason", "new_run", "token"]

texts = st.one_of(
    st.sampled_from(
        [
            "payout-1",
            "broken-1",
            "approve",
            "pay-back",
            "$flow",
            "retry",
            "failed",
            "1h",
            "{}",
            "NaN",
            "9" * 400,
            "0d",
            "999999w",
            "a\0b",
        ]
    ),
    st.text(max_size=30),
    st.datetimes().map(lambda moment: f"{moment.isoformat()} x"),
)
pairs = st.lists(st.tuples(st.sampled_from(NAMES), texts), max_size=6)


def encoded(given: list[tuple[str, str]]) -> bytes:
    from urllib.parse import quote

    return "&".join(f"{name}={quote(text, safe='', errors='surrogatepass')}" for name, text in given).encode()


async def status_of(page: Page, method: str, path: str, query: bytes, headers: dict[str, str], body: bytes) -> int:
    """Send a request as a server would, and return the status of the answer."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query,
        "scheme": "https", "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "http_version": "1.1",
    }  # fmt: skip
    await page(scope, receive, send)
    return int(sent[0]["status"])


@settings(max_examples=200, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "HEAD"]),
    path=st.sampled_from([*PATHS, *ACTIONS]),
    query=st.one_of(pairs.map(encoded), st.binary(max_size=20)),
    form=pairs,
)
def test_any_request(method: str, path: str, query: bytes, form: list[tuple[str, str]]) -> None:
    """A view or an action gets any fields, from somebody who may do all: nothing is a fault, and nothing hangs."""

    async def once() -> int:
        store = MemoryStore()
        await ask(store)
        await fail(store)
        page = app(store, user=signed_in, secret=SECRET)
        token = Tokens(SECRET).for_forms("alice")
        headers = {"x-user": "alice", "sec-fetch-site": "same-origin", "content-type": "application/x-www-form-urlencoded"}
        return await status_of(page, method, path, query, headers, encoded([("token", token), *form]))

    assert asyncio.run(once()) in (200, 303, 400, 403, 404, 405, 409, 410)
