"""A page that is served, and people who look at it in Chromium: `nox -s browser`, which names this folder and the browser."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from durable_core import MemoryStore, Store
from durable_web import app
from tests.web.conftest import signed_in

T = TypeVar("T")

SECONDS = 20.0
expect.set_options(timeout=SECONDS * 1000)


class Site:
    """A page served on a loop of its own, on which flows run too."""

    def __init__(self, url: str, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.store = store
        self._loop = loop

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something on the page's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the page's loop."""
        return self.start(work).result(SECONDS)


@contextmanager
def served(store: Callable[[], Awaitable[Store]], **options: Any) -> Iterator[Site]:
    """Serve the page of a store that is made on the page's loop."""
    ready: Future[tuple[str, Store, asyncio.AbstractEventLoop, uvicorn.Server]] = Future()

    async def serve() -> None:
        try:
            made = await store()
            page = app(made, **{"user": signed_in, **options})
            server = uvicorn.Server(uvicorn.Config(page, port=0, log_level="warning", timeout_graceful_shutdown=1))
            task = asyncio.create_task(server.serve())
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            ready.set_result((f"http://127.0.0.1:{port}/", made, asyncio.get_running_loop(), server))
            await task
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    url, made, loop, server = ready.result(SECONDS)
    try:
        yield Site(url, made, loop)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Start the browser; a machine without one fails here."""
    with sync_playwright() as playwright:
        # Debian's sandbox needs rights that a container's root lacks; the pages are our own.
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """Somebody with a window of their own, who may wait for what a page is to show. Errors in the console fail the test."""

    def __init__(self, context: BrowserContext, site: Site) -> None:
        self._site = site
        self.faults: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda asked: None if asked.url.startswith(site.url) else self.faults.append(asked.url))

    def open(self, path: str = "") -> Page:
        """Open a page of the site."""
        self.page.goto(self._site.url + path, wait_until="load")
        return self.page


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Open a window: `visit(site, "alice", width=390, scheme="dark")`."""
    with ExitStack() as stack:
        visitors: list[Visitor] = []

        def open_window(site: Site, name: str = "alice", *, width: int = 1440, scheme: Any = "light", **options: Any) -> Visitor:
            viewport: ViewportSize = {"width": width, "height": 900}
            settings = {"viewport": viewport, "color_scheme": scheme, "reduced_motion": "reduce", **options}
            context = chromium.new_context(extra_http_headers={"x-user": name}, **settings)
            stack.callback(context.close)
            visitors.append(Visitor(context, site))
            return visitors[-1]

        yield open_window
        assert [fault for visitor in visitors for fault in visitor.faults] == []


async def in_memory() -> Store:
    """Make a clean store."""
    return MemoryStore()


@pytest.fixture
def site() -> Iterator[Site]:
    """A page of a clean store in memory."""
    with served(in_memory) as site:
        yield site
