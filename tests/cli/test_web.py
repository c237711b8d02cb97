"""`durable web`: the page, served on this machine."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from tests.cli.acting import asked, on_url
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/runs.db"


def test_the_link_opens_the_page_once(terminal: Callable[..., Terminal], local: str) -> None:
    """Whoever has the link sees the runs; a second browser with the same link doesn't, and one without it neither."""
    on_url(local, lambda store: asked(store, "refund-7"))
    seen = terminal("web", local, "--port", "0", "--by", "mallory")
    link = seen.expect(r"The page is at (http://127\.0\.0\.1:\d+/\S+)")[1]
    first, second = (urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar())) for _ in range(2))
    with first.open(link, timeout=30) as page:
        root = re.match(r"http://[^/]+", link)[0]  # type: ignore[index]  # it was matched above
        assert page.status == 200
    with first.open(f"{root}/runs", timeout=30) as page:
        text = page.read().decode()
        assert "refund-7" in text
        assert "mallory" in text
    for opener, url in ((second, link), (second, f"{root}/runs")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(url, timeout=30)
        assert refused.value.code in (401, 403)
        refused.value.close()
    seen.interrupt()
    assert seen.end() == 130
    assert "Traceback" not in seen.seen


def test_as_json_the_link_is_one_object(terminal: Callable[..., Terminal], local: str) -> None:
    """A program reads it, and opens it."""
    seen = terminal("web", "--store", local, "--port", "0", "--json")
    assert set(json.loads(seen.expect(r"\{.*?\}")[0])) == {"url"}


def test_an_empty_name_is_refused(durable: Durable, local: str) -> None:
    """As usage, before anything is served."""
    done = durable("web", local, "--by", "")
    assert (done.code, done.out) == (2, "")
    assert "by must be a name" in done.err


def test_an_address_that_others_reach_is_refused(durable: Durable, local: str) -> None:
    """Before anything is served: it knows nobody's name."""
    done = durable("web", local, "--host", "0.0.0.0")
    assert (done.code, done.out) == (2, "")
    assert "0.0.0.0" in done.err
