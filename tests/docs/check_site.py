"""The built site in a real browser: `nox -s site`. Not named like a test, since a plain `pytest` has no browser.

`DURABLE_SITE` is a folder that holds the built site as `durable`, where its addresses say it is; `CHROMIUM` is the browser.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

SITE = Path(os.environ["DURABLE_SITE"])
BUILT = SITE / "durable"
DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(BUILT).as_posix() for path in BUILT.rglob("*.html"))
WIDTHS = {"wide": 1440, "narrow": 390}
PATIENCE = 120_000  # ms, which only bounds a hang: a busy machine takes its time to start a page
STANDARD = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}

each_page = pytest.mark.parametrize("path", PAGES)
each_width = pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Host(Quiet):
    """Shows a page of the site's own for an address that isn't there, as hosts of static sites do."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.error_message_format = Path(self.directory, "durable", "404.html").read_text(encoding="utf-8").replace("%", "%%")
        super().send_error(code, message, explain)


@contextmanager
def served(folder: Path, handler: type[Quiet]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/durable/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Serve the site as it is deployed: one folder of several, with a list of versions beside them."""
    (SITE / "versions.json").write_text(json.dumps([{"version": "latest", "title": "latest", "aliases": []}]))
    with served(SITE, Quiet) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Debian's sandbox needs rights that a container's root lacks; the pages are our own.
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


@pytest.fixture(scope="session", params=[(scheme, width) for scheme in ("light", "dark") for width in WIDTHS], ids="-".join)
def reader(browser: Browser, request: pytest.FixtureRequest) -> Iterator[tuple[BrowserContext, str, int]]:
    """Somebody with a wide or a narrow screen, by day or by night."""
    scheme, width = request.param[0], WIDTHS[request.param[1]]
    viewport: ViewportSize = {"width": width, "height": 900}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    yield context, scheme, width
    context.close()


def open_search(page: Page) -> None:
    """Press `/` once the page listens to it, and its index of the search is there."""
    page.get_by_text("Type to start searching").wait_for(state="attached")
    page.keyboard.press("/")
    page.wait_for_function("document.activeElement.classList.contains('md-search__input')")


@each_page
def test_a_page_is_sound(reader: tuple[BrowserContext, str, int], address: str, path: str) -> None:
    """It fits, logs no error, asks no other server, shows its pictures and diagrams, and keeps to WCAG AA."""
    context, scheme, width = reader
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: faults.append(request.url) if not request.url.startswith(address.removesuffix("durable/")) else None,
    )
    page.goto(address + path, wait_until="load")
    assert page.locator("body").get_attribute("data-md-color-scheme") == ("slate" if scheme == "dark" else "default")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    for diagram in page.locator(".diagram").all():
        box = diagram.locator("svg").bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 100
        assert diagram.locator("svg text").count() > 3
    assert faults == []
    # Colours do not depend on the width, and comparing them takes longest.
    rules = {"color-contrast": {"enabled": width == WIDTHS["wide"]}}
    found = Axe().run(page, options={**STANDARD, "rules": rules}).response["violations"]
    assert [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]] == []
    page.close()


@each_page
def test_every_diagram_is_drawn(path: str) -> None:
    """No mermaid block is left as text."""
    assert "mermaid.min.js" not in (BUILT / path).read_text(encoding="utf-8")
    assert "data-diagram=" not in (BUILT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("approval", "howto/ask-a-person/"),
        ("exactly once", "concepts/guarantees/"),
        ("open_store", "reference/store/"),
        ("human", "howto/ask-a-person/"),
        ("saga", "howto/undo/"),
        ("fastapi", "howto/fastapi/"),
        ("django", "howto/django/"),
        ("celery", "howto/celery/"),
        ("docker", "howto/kubernetes-and-docker/"),
        ("progress", "howto/many-at-once/"),
        ("metrics", "howto/observability/"),
        ("opentelemetry", "howto/see-it-in-opentelemetry/"),
        ("webhook", "howto/start-from-a-webhook/"),
        ("agent", "agent"),  # any page about agents
    ],
)
def test_search_finds_it_first(context: BrowserContext, address: str, words: str, expected: str) -> None:
    """The first result of a search is the page that tells about it."""
    page = context.new_page()
    page.goto(address)
    open_search(page)
    page.keyboard.type(words)
    page.locator(".md-search-result__link").first.wait_for()
    first = page.locator(".md-search-result__link").first.get_attribute("href")
    assert first is not None
    assert expected in urlsplit(urljoin(address, first)).path.removeprefix("/durable/")


def test_code_copies(context: BrowserContext, address: str) -> None:
    """The button beside a block copies the block, and nothing else."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(address + "tutorial/", wait_until="networkidle")
    block = page.locator(".highlight").nth(1)
    block.hover()
    block.locator("button[data-md-type=copy], .md-clipboard").first.click()
    expected = re.findall(r"^```\w+\n(.*?)^```$", (DOCS / "tutorial.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert page.evaluate("navigator.clipboard.readText()").strip() == expected[1].strip()


@each_width
def test_the_keyboard_is_enough(context: BrowserContext, address: str, width: int) -> None:
    """The first tab offers to skip to the content; what has the focus shows it; search opens and closes."""
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address + "concepts/guarantees/", wait_until="networkidle")
    page.keyboard.press("Tab")
    assert "md-skip" in page.evaluate("[...document.activeElement.classList]")
    page.keyboard.press("Enter")
    seen = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => {
                const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
                return {tag: one.tagName, seen: box.width > 0 && box.bottom > 0 && box.top < innerHeight,
                        shown: style.outlineStyle !== "none" || style.boxShadow !== "none", text: one.textContent.trim()};
            }"""
        )
        if focus["tag"] == "BODY":  # past the last link
            break
        assert focus["seen"], focus
        assert focus["shown"], focus
        seen.add((focus["tag"], focus["text"]))
    assert len(seen) > 5
    in_search = "document.activeElement.classList.contains('md-search__input') && document.getElementById('__search').checked"
    open_search(page)
    page.wait_for_function(in_search)
    page.keyboard.press("Escape")
    page.wait_for_function(f"!({in_search})")


@each_page
def test_a_page_says_what_it_is_elsewhere(path: str) -> None:
    """A link to it shows a card, and its edit button leads to its source."""
    text = (BUILT / path).read_text(encoding="utf-8")
    cards = re.findall(r'<meta property="og:image" content="[^"]*/(assets/[^"]+)">', text)
    assert len(cards) == 1
    assert (BUILT / cards[0]).is_file()
    assert '<meta property="og:description" content="' in text
    if path != "404.html":
        (source,) = set(re.findall(r'href="https://[^"]*/edit/main/docs/([^"]+)"', text))
        assert (DOCS / source).is_file()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Publish two versions and mend the older one, and serve the branch as its host does."""
    folder = tmp_path_factory.mktemp("published")
    origin, clone = folder / "origin.git", folder / "clone"
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c"}
    # The pages come from here, and the branch goes into a repository that knows nothing else.
    environment = {**os.environ, **names, "GIT_DIR": str(clone / ".git")}

    def run(*command: str) -> None:
        subprocess.run(command, env=environment, cwd=DOCS.parent, check=True)

    subprocess.run(["git", "init", "--quiet", "--bare", str(origin)], check=True)
    subprocess.run(["git", "init", "--quiet", str(clone)], check=True)
    run("git", "remote", "add", "origin", str(origin))
    run("git", "commit", "--quiet", "--allow-empty", "--message", "Begin")
    for version in ("0.9", "0.10", "0.9"):
        run(sys.executable, "docs/_build/publish.py", version)
    subprocess.run(["git", "clone", "--quiet", "--branch", "gh-pages", str(origin), str(folder / "durable")], check=True)
    with served(folder, Host) as address:
        yield address


def test_the_root_leads_to_the_highest_version(context: BrowserContext, published: str) -> None:
    """Also when an older version was published last."""
    page = context.new_page()
    page.goto(published)
    page.wait_for_url(published + "latest/")
    assert page.locator(".md-version__current").inner_text().strip() == "0.10"
    assert not page.locator("[data-md-component=outdated]").is_visible()
    home = "https://durable-py.github.io/durable/latest/"
    assert page.locator("link[rel=canonical]").get_attribute("href") == home
    assert page.locator("meta[property='og:image']").get_attribute("content") == home + "assets/card.png"


def test_a_reader_changes_version(context: BrowserContext, published: str) -> None:
    """The picker keeps the page, and an older version says that it is one and leads to the newest."""
    page = context.new_page()
    page.goto(published + "latest/howto/ask-a-person/")
    page.locator(".md-version__current").focus()
    assert page.locator(".md-version__link").all_inner_texts() == ["0.10", "0.9"]
    page.get_by_role("link", name="0.9", exact=True).click()
    page.wait_for_url(published + "0.9/howto/ask-a-person/")
    page.locator("[data-md-component=outdated]").get_by_role("link").click()
    page.wait_for_url(published + "latest/")


@pytest.mark.parametrize("path", ["no-such-page", "latest/no/such/page/", "0.9/no-such-page/"])
def test_an_address_that_is_nowhere_helps(context: BrowserContext, published: str, path: str) -> None:
    """However deep it is, what stands there has its style, searches, and leads back."""
    page = context.new_page()
    missing: list[str] = []
    page.on("response", lambda response: missing.append(response.url) if not response.ok else None)
    page.goto(published + path, wait_until="networkidle")
    assert missing == [published + path]
    open_search(page)
    page.keyboard.type("approval")
    assert page.locator(".md-search-result__link").first.get_attribute("href")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="go to the home page").click()
    page.wait_for_url(published + "latest/")


def test_an_unknown_address_helps(context: BrowserContext, address: str) -> None:
    """The page for what isn't there leads back."""
    page = context.new_page()
    page.goto(address + "404.html", wait_until="networkidle")
    page.get_by_role("link", name="go to the home page").click()
    assert page.locator("h1").inner_text().startswith("Python that survives crashes")
