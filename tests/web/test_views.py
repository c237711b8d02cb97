"""What the pages show."""

from durable_core import MemoryStore, Store
from durable_web import Page, app
from tests.web.conftest import Browse, signed_in
from tests.web.flows import ask, fail, parcel


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
        ("work", {}, "No schedule is recorded"),
    ]:
        shown = await alice.get(path, **query)
        assert shown.status_code == 200, shown.text
        assert what in shown.text


async def test_static_files(page: Page, browse: Browse) -> None:
    """They need no account, have the type that a browser wants, and are sent once."""
    nobody = browse(page)
    for name, kind in [("durable.css", "text/css"), ("htmx.min.js", "text/javascript"), ("htmx-LICENSE.txt", "text/plain")]:
        sent = await nobody.get(f"static/{name}")
        assert (sent.status_code, sent.headers["content-type"].partition(";")[0]) == (200, kind)
        again = await nobody.client.get(f"{nobody.base}/static/{name}", headers={"if-none-match": sent.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
