"""Pages that change while they are open."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from durable_core import MemoryStore, Runner, RunSuspended, StepRecord, Store, StoreError, control
from durable_core.store import polling_of
from durable_web import Page, app
from durable_web._views import _live
from tests.web.conftest import signed_in
from tests.web.flows import ask
from tests.web.shop import begin_working

SECONDS = 20.0


class Stream:
    """What a browser hears that watches a page."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.heard = ""
        self.is_over = False
        self._news = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.heard += message.get("body", b"").decode()
            self.is_over = not message.get("more_body", False)
        self._news.set()

    async def hears(self, text: str) -> str:
        """Wait until it is told, and return all that was heard until then; forget it."""
        async with asyncio.timeout(SECONDS):
            while text not in self.heard and not self.is_over:
                self._news.clear()
                await self._news.wait()
        assert text in self.heard
        heard, self.heard = self.heard, ""
        return heard


@asynccontextmanager
async def watching(page: Page, path: str, /, **query: Any) -> AsyncIterator[Stream]:
    """Watch a page as alice."""
    stream, leave = Stream(), asyncio.Event()

    async def receive() -> Any:
        await leave.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/live/{path}",
        "raw_path": b"",
        "root_path": "",
        "query_string": urlencode(query).encode(),
        "headers": [(b"host", b"ops.example.com"), (b"x-user", b"alice")],
        "server": ("ops.example.com", 80),
        "client": ("127.0.0.1", 1),
    }
    task = asyncio.create_task(page(scope, receive, stream.send))
    try:
        yield stream
    finally:
        leave.set()
        await task


async def test_the_inbox_tells_of_votes_and_decisions(store: Store) -> None:
    """Whoever has the page open sees them, on every store."""
    await ask(store, quorum=2)
    if (polling := polling_of(store)) is not None:
        polling.poll_seconds = 2.0  # on S3 it is twenty
    async with watching(app(store, user=signed_in), "inbox") as stream:
        assert "0 of 2" in await stream.hears("\n\n")
        assert stream.headers["content-type"].startswith("text/event-stream")
        await control.approve(store, "payout-1", "approve", by="bob", reason="fits")
        assert "by <strong>bob</strong>" in await stream.hears("1 of 2")
        await control.approve(store, "payout-1", "approve", by="carol")
        await stream.hears("Nothing waits for a decision")


async def test_ids_come_through_as_they_are(memory: MemoryStore) -> None:
    """Also those that hold what Python takes for the end of a line and a browser doesn't: the form answers that very step."""
    step_id = "a\u2028b\u2029c"
    with suppress(RunSuspended):
        async with Runner(memory, "run", wait_limit=0) as runner:
            await runner.approval(step_id, None)
    async with watching(app(memory, user=signed_in), "inbox") as stream:
        lines = re.split("\r\n|\r|\n", await stream.hears("\n\n"))
    assert f'name="step" value="{step_id}"' in "\n".join(line.removeprefix("data: ") for line in lines)


async def test_a_run_is_told_of_until_it_has_ended(memory: MemoryStore) -> None:
    """Its steps, and its end; then the stream says that nothing more will come."""
    task = await begin_working(memory, until=2)
    async with watching(app(memory, user=signed_in), "run", run="import-1") as stream:
        assert "part-1" in await stream.hears("\n\n")
        await control.send(memory, "import-1", "go", "done")
        await stream.hears("event: ended\n")
        assert stream.is_over
    await task


WATCHED: dict[str, tuple[str, dict[str, str]]] = {
    "inbox": ("amount", {}),
    "run": ("look-up", {"run": "payout-1"}),
    "step": ("amount", {"run": "payout-1", "step": "approve"}),
}


@pytest.mark.parametrize("path", WATCHED)
async def test_a_store_that_is_away_is_told_and_the_page_kept(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shown stays; when the store is back, so is what it holds, and nothing more is said of it."""

    class Goes(MemoryStore):
        is_away = False

        async def list(self, run_id: str) -> Any:
            if self.is_away:
                raise StoreError("<no> connection")
            return await super().list(run_id)

        async def get(self, run_id: str, step_id: str) -> Any:
            if self.is_away:
                raise StoreError("<no> connection")
            return await super().get(run_id, step_id)

        async def flows(self, *args: Any, **options: Any) -> Any:
            if self.is_away:
                raise StoreError("<no> connection")
            return await super().flows(*args, **options)

    monkeypatch.setattr(_live, "_AGAIN", 0.05)
    what, query = WATCHED[path]
    store = Goes()
    await ask(store)
    async with watching(app(store, user=signed_in), path, **query) as stream:
        await stream.hears(what)
        store.is_away = True
        told = await stream.hears("The store is away: &lt;no&gt; connection")
        assert what not in told
        store.is_away = False
        back = await stream.hears(what)
        assert '<div id="trouble" role="status" hx-swap-oob="true"></div>' in back


async def test_a_stream_ends_so_that_its_visitor_is_asked_again(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute, here less: who may no longer look sees nothing more from then on."""
    monkeypatch.setattr(_live, "_LASTS", 0.2)
    await ask(memory)
    async with asyncio.timeout(SECONDS), watching(app(memory, user=signed_in), "inbox") as stream:
        while not stream.is_over:
            await asyncio.sleep(0.01)
    assert "event: ended" not in stream.heard
    async with watching(app(memory, user=lambda request: None), "inbox") as stream:
        await stream.hears("not signed in")
    assert stream.status == 401


async def test_a_run_that_is_cleared_meanwhile(memory: MemoryStore) -> None:
    """The page says that it is gone, and asks no more."""
    await memory.append(StepRecord(run_id="run", step_id="$flow", kind="flow", name="f", status="waiting"))
    async with watching(app(memory, user=signed_in), "run", run="run") as stream:
        await stream.hears("\n\n")
        await memory.clear("run")
        assert "there is no run" in await stream.hears("event: ended\n")
        assert stream.is_over


@pytest.mark.parametrize(("path", "query"), [("inbox", "longer=soon"), ("run", "run=r&page=x"), ("step", "run=r&step=")])
async def test_what_cannot_be_watched(memory: MemoryStore, path: str, query: str) -> None:
    """It is refused as its page is, before a stream begins."""
    async with watching(app(memory, user=signed_in), path, **dict(parse_qsl(query))) as stream:
        await stream.hears("Please check what you entered")
    assert stream.status == 400
