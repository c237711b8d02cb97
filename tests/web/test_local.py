"""A page without accounts: this machine alone, behind a link that works once."""

from __future__ import annotations

import getpass
import logging
import re
from typing import Any

import httpx
import pytest

from durable_core import MemoryStore
from durable_web import app, serve
from tests.web.conftest import Browse
from tests.web.flows import ask

HERE = "http://127.0.0.1:8000"
_LINK = re.compile(r"http://\S+/enter\?key=\S+")


@pytest.mark.parametrize("root_path", ["", "/durable"])
async def test_the_link_works_once(memory: MemoryStore, browse: Browse, caplog: pytest.LogCaptureFixture, root_path: str) -> None:
    """The first visit has it logged, once; whoever opens it may do everything, as the one who runs the server."""
    await ask(memory)
    page = app(memory)
    me, other = (browse(page, base=HERE, root_path=root_path) for _ in range(2))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            refused = await me.get("")
            assert (refused.status_code, "payout" in refused.text) == (401, False)
    (link,) = _LINK.findall(caplog.text)
    assert (await other.client.head(link)).status_code == 405
    entered = await me.client.get(link)
    assert (entered.status_code, entered.headers["location"]) == (303, f"{root_path}/")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert f"Path={root_path or '/'};" in cookie
    assert "SameSite=lax" in cookie
    assert "payout-1" in (await me.get("")).text
    assert (await me.post("act/cancel", run="payout-1")).status_code == 303
    record = await memory.get("payout-1", "$flow")
    assert record is not None
    assert record.notes["cancelled"]["by"] == getpass.getuser()

    assert (await other.client.get(link)).status_code == 403
    assert (await other.get("")).status_code == 401
    assert (await me.client.get(link)).status_code == 303  # who is in already may open it again


async def test_the_visitor_is_who_by_names(memory: MemoryStore, browse: Browse) -> None:
    """An approver decides under that name, where the system's user may not."""
    await ask(memory)
    page = app(memory, by="alice")
    me = browse(page, base=HERE)
    await me.client.get(str(page.one_time_link(HERE)))
    assert (await me.post("act/cancel", run="payout-1")).status_code == 303
    record = await memory.get("payout-1", "$flow")
    assert record is not None
    assert record.notes["cancelled"]["by"] == "alice"


@pytest.mark.parametrize("options", [{"by": ""}, {"by": 7}, {"by": "alice", "user": lambda request: None}])
def test_a_name_that_counts_for_nothing_is_refused(memory: MemoryStore, options: dict[str, Any]) -> None:
    """It is no name, or `user=` says who visits."""
    with pytest.raises((TypeError, ValueError), match="^by"):
        app(memory, **options)


async def test_a_second_browser_gets_a_link_of_its_own(
    memory: MemoryStore, browse: Browse, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the first link was used, the next visit from elsewhere has another one logged."""
    page = app(memory)
    for number in range(1, 3):
        someone = browse(page, base=HERE)
        await someone.get("")
        links = _LINK.findall(caplog.text)
        assert len(links) == number
        assert (await someone.client.get(links[-1])).status_code == 303
        assert (await someone.get("runs")).status_code == 200


@pytest.mark.parametrize("key", ["", "x", "é", "\x00"])
async def test_a_key_that_is_wrong(memory: MemoryStore, browse: Browse, key: str) -> None:
    """Nobody gets in with another key, and the right one is still good."""
    page = app(memory)
    link = page.one_time_link(HERE)
    assert link is not None
    me = browse(page, base=HERE)
    assert (await me.get("enter", key=key)).status_code == 403
    assert (await me.client.get(link)).status_code == 303


@pytest.mark.parametrize(
    ("host", "client", "server"),
    [
        ("ops.example.com", "127.0.0.1", "127.0.0.1"),  # a name that somebody else points here
        ("127.0.0.1.evil.example", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1@evil.example", "127.0.0.1", "127.0.0.1"),
        ("", "127.0.0.1", "127.0.0.1"),
        ("[::1", "127.0.0.1", "127.0.0.1"),
        ("localhost:port", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "10.0.0.5", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", "10.0.0.1"),
        ("localhost", "::ffff:10.0.0.5", "::1"),
    ],
)
async def test_anybody_from_elsewhere_is_told_why(memory: MemoryStore, host: str, client: str, server: str) -> None:
    """By the name that was asked for, who asks, and where it was taken; also with a session, and for the probes."""
    page = app(memory)
    session = page._site.tokens.for_session()
    for path in ["/", "/runs", "/healthz", "/enter", "/decide"]:
        token = page._site.tokens.for_link({"run": "r", "step": "s", "by": "b", "mark": "m", "expires": 9**10})
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        headers = {"host": host, "cookie": f"durable_session_80={session}"}
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": b"", "root_path": "", "http_version": "1.1",
            "query_string": f"link={token}".encode(), "scheme": "http", "client": (client, 1), "server": (server, 8000),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        await page(scope, receive, send)
        assert sent[0]["status"] == 403, path
        assert b"user=" in sent[1]["body"]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.2"])
async def test_names_of_this_machine(memory: MemoryStore, host: str) -> None:
    """The loopback address, in either family, and its name."""
    page = app(memory)
    transport = httpx.ASGITransport(page, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, headers={"host": host}) as client:
        port = 8000 if host.endswith(":8000") else 80
        client.cookies.set(f"durable_session_{port}", page._site.tokens.for_session())
        assert (await client.get("http://127.0.0.1/runs")).status_code == 200


async def test_two_pages_on_two_ports(memory: MemoryStore) -> None:
    """A browser sends a cookie to every port of a machine: who enters one page is still in the other."""
    pages = {f"http://127.0.0.1:{port}": app(memory) for port in (8000, 8001)}
    mounts = {url: httpx.ASGITransport(page, client=("127.0.0.1", 1)) for url, page in pages.items()}
    async with httpx.AsyncClient(mounts=mounts) as me:
        for url, page in pages.items():
            assert (await me.get(str(page.one_time_link(url)))).status_code == 303
        assert [(await me.get(f"{url}/runs")).status_code for url in pages] == [200, 200]


async def test_a_link_and_a_session_end_with_the_server(memory: MemoryStore) -> None:
    """Without `secret=`, who was let in before a restart needs the new link, and the old one is good for nothing."""
    old, new = app(memory), app(memory)
    link = str(old.one_time_link(HERE))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(old, client=("127.0.0.1", 1))) as me:
        assert (await me.get(link)).status_code == 303
        cookies = me.cookies
    async with httpx.AsyncClient(transport=httpx.ASGITransport(new, client=("127.0.0.1", 1)), cookies=cookies) as me:
        assert (await me.get(f"{HERE}/runs")).status_code == 401
        assert (await me.get(link)).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "ops.example.com", ""])
async def test_serving_for_others_without_accounts(memory: MemoryStore, host: str) -> None:
    """It is refused at the start, with the reason."""
    with pytest.raises(ValueError, match=r"pass user=, a function of the request"):
        await serve(memory, host=host, port=0)


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"user": "alice"}, TypeError, "user must be a function"),
        ({"access": lambda user: "all"}, TypeError, "needs user="),
        ({"secret": "short"}, ValueError, "16 characters or more, not 5"),
        ({"secret": b"x" * 32}, TypeError, "secret must be a str"),
        ({"title": ""}, TypeError, "title must be"),
        ({"notify": 1}, TypeError, "notify must be"),
        ({"redact": "x"}, TypeError, "redact must be"),
    ],
)
def test_options_that_are_wrong(memory: MemoryStore, options: dict[str, Any], error: type[Exception], what: str) -> None:
    """Each is one clear error when the page is made, and a secret is not shown."""
    with pytest.raises(error, match=what) as raised:
        app(memory, **options)
    assert "short" not in str(raised.value)


def test_a_url_is_no_store() -> None:
    """The error says what to write."""
    with pytest.raises(TypeError, match="open_store"):
        app("sqlite:runs.db")  # type: ignore[arg-type]  # on purpose
