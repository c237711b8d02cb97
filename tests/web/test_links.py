"""Decision links: one person answers one question once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from durable_core import MemoryStore, StepRecord, Store, control
from durable_web import Access, Page, User, app, decision_link
from tests.web.conftest import HOST, Browse, Browser, signed_in
from tests.web.flows import ask, payout

SECRET = "a secret of the tests"
_FIELDS = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


async def approval(store: Store, run_id: str = "payout-1", **input: Any) -> StepRecord:
    """Have a run wait for people, and return what waits."""
    await ask(store, run_id, **input)
    (waiting,) = [record async for record in control.pending(store, run_id)]
    return waiting


def page_of(store: Store, access: Callable[[User], Access | None] | None = None) -> Page:
    return app(store, user=signed_in, access=access, secret=SECRET)


def token_of(link: str) -> str:
    return parse_qs(urlsplit(link).query)["link"][0]


async def fill_in(browser: Browser, link: str) -> dict[str, str]:
    """Open a link, and return the fields of its form."""
    shown = await browser.client.get(link)
    assert shown.status_code == 200, shown.text
    return {name: unescape(value) for name, value in _FIELDS.findall(shown.text)}


async def votes(store: Store, run_id: str = "payout-1") -> list[tuple[str, bool]]:
    """Return who has said what."""
    record = await store.get(run_id, "approve")
    assert record is not None
    return [(vote["by"], vote["approved"]) for vote in record.notes.get("votes", [])]


async def test_an_answer_by_a_link(store: Store, browse: Browse) -> None:
    """Whoever holds it answers without an account, with a reason and a value, and the run goes on with that."""
    link = decision_link(HOST, await approval(store), by="alice", secret=SECRET)
    nobody = browse(page_of(store))
    fields = await fill_in(nobody, link)
    answer = await nobody.post("decide", **fields, answer="approve", reason="fits", value='{"amount": 45}')
    assert "Your approval is recorded" in answer.text
    record = await store.get("payout-1", "approve")
    assert record is not None
    decision = record.value(dict[str, Any])
    assert (decision["by"], decision["reason"], decision["value"]) == ("alice", "fits", {"amount": 45})
    assert await payout.run(store, run_id="payout-1") == "paid by alice"


async def test_opening_it_decides_nothing(memory: MemoryStore, browse: Browse) -> None:
    """Scanners open links, twice and by HEAD: nothing is recorded, and the link still works."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    before = await memory.list("payout-1")
    nobody = browse(page_of(memory))
    for method in ["GET", "HEAD", "GET"]:
        assert (await nobody.client.request(method, link)).status_code == 200
    for method in ["PUT", "DELETE", "OPTIONS"]:
        assert (await nobody.client.request(method, link + "&answer=approve")).status_code == 405
    assert await memory.list("payout-1") == before
    fields = await fill_in(nobody, link)
    assert (await nobody.post("decide", **fields, answer="reject")).status_code == 200
    assert await votes(memory) == [("alice", False)]


async def test_a_link_used_twice(memory: MemoryStore, browse: Browse) -> None:
    """The second use is refused, with the same answer and with another, and so is opening it."""
    link = decision_link(HOST, await approval(memory, quorum=2), by="alice", secret=SECRET)
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)
    assert (await nobody.post("decide", **fields, answer="approve")).status_code == 200
    for answer in ["approve", "reject"]:
        again = await nobody.post("decide", **fields, answer=answer)
        assert (again.status_code, "was used" in again.text) == (410, True)
    assert (await nobody.client.get(link)).status_code == 410
    assert await votes(memory) == [("alice", True)]


async def test_a_link_used_twice_at_once(store: Store, browse: Browse) -> None:
    """Of two answers that race, one is recorded, whichever process takes them, and by whichever link of that person."""
    waiting = await approval(store, quorum=3)
    two = [browse(page_of(store)) for _ in range(2)]
    links = [decision_link(HOST, waiting, by="alice", secret=SECRET, lasts=timedelta(days=days)) for days in (1, 2)]
    fields = [await fill_in(each, link) for each, link in zip(two, links, strict=True)]
    get, both, calls = store.get, asyncio.Event(), 0

    async def met(run_id: str, step_id: str) -> StepRecord | None:
        nonlocal calls
        record = await get(run_id, step_id)
        calls += step_id == "approve"
        if calls == 2:
            both.set()
        await both.wait()  # each has seen that nobody has answered
        return record

    store.get = met  # type: ignore[method-assign]  # two requests that meet at this very place
    said = zip(two, fields, ["approve", "reject"], strict=True)
    answers = await asyncio.gather(*[each.post("decide", **given, answer=answer) for each, given, answer in said])
    assert sorted(answer.status_code for answer in answers) == [200, 410]
    assert len(await votes(store)) == 1


async def test_the_same_answer_goes_on_after_a_crash(memory: MemoryStore, browse: Browse) -> None:
    """Where the server died between taking the link and recording the vote, the person's same answer records it."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)
    append = memory.append

    async def dies(record: StepRecord) -> StepRecord:
        if record.step_id == "approve":
            raise ConnectionError("the process is gone")
        return await append(record)

    memory.append = dies  # type: ignore[method-assign]  # a crash at this very place
    assert (await nobody.post("decide", **fields, answer="approve")).status_code == 503
    memory.append = append  # type: ignore[method-assign]
    assert (await nobody.post("decide", **fields, answer="reject")).status_code == 410
    assert (await nobody.post("decide", **fields, answer="approve")).status_code == 200
    assert await votes(memory) == [("alice", True)]


@pytest.mark.parametrize("value", ["NaN", "{", '"\\ud800"', "1e999", "[" * 5000])
async def test_a_value_that_is_none_uses_no_link(memory: MemoryStore, browse: Browse, value: str) -> None:
    """Whoever mistyped the value is told, and may answer again."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)
    assert (await nobody.post("decide", **fields, answer="approve", value=value)).status_code == 400
    assert (await nobody.post("decide", **fields, answer="approve", value="1")).status_code == 200


async def test_a_link_whose_person_answered_elsewhere(memory: MemoryStore, browse: Browse) -> None:
    """Whoever has voted in another way has no use of the link any more."""
    link = decision_link(HOST, await approval(memory, quorum=2), by="alice", secret=SECRET)
    await control.approve(memory, "payout-1", "approve", by="alice")
    assert (await browse(page_of(memory)).client.get(link)).status_code == 410


async def test_a_link_that_was_changed(memory: MemoryStore, browse: Browse) -> None:
    """Any other character, another secret, a token of another kind, or none: nothing is shown."""
    waiting = await approval(memory)
    token = token_of(decision_link(HOST, waiting, by="alice", secret=SECRET))
    other = token_of(decision_link(HOST, waiting, by="alice", secret=SECRET + "!"))
    page = page_of(memory)
    nobody = browse(page)
    changed = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(0, len(token) - 1, 7)]
    form_token = page._site.tokens.for_forms("alice")
    for each in [*changed, token[:-1], token + "x", other, form_token, page._site.tokens.for_session(), "", "é", "x" * 5000]:
        shown = await nobody.get("decide", link=each)
        assert (shown.status_code, "DE-1" in shown.text or "90" in shown.text) == (403, False)


async def test_a_link_that_expired(memory: MemoryStore, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time it shows nothing and answers nothing, also from a page that was opened before."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET, lasts=timedelta(hours=1))
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)

    class Later:
        @staticmethod
        def now(zone: Any) -> Any:
            from datetime import datetime

            return datetime.now(zone) + timedelta(hours=1, seconds=1)

    monkeypatch.setattr("durable_web._links.datetime", Later)
    assert (await nobody.client.get(link)).status_code == 410
    assert (await nobody.post("decide", **fields, answer="approve")).status_code == 410
    assert await votes(memory) == []


async def test_a_link_holds_for_what_was_shown(memory: MemoryStore, browse: Browse) -> None:
    """A run that was cleared and asks again under the same ids, with another amount or the same, needs a new link."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)
    await memory.clear("payout-1")
    assert (await nobody.client.get(link)).status_code == 410
    for amount in [9000, 90]:
        await memory.clear("payout-1")
        await ask(memory, amount=amount)
        shown = await nobody.client.get(link)
        assert (shown.status_code, "has changed" in shown.text) == (410, True)
        assert (await nobody.post("decide", **fields, answer="approve")).status_code == 410
    assert await votes(memory) == []


async def test_a_link_of_one_question_answers_no_other(memory: MemoryStore, browse: Browse) -> None:
    """Run and step in the form count for nothing, and a mark of another question is refused."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    other = decision_link(HOST, await approval(memory, "payout-2"), by="alice", secret=SECRET)
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)
    elsewhere = await fill_in(nobody, other)
    assert (await nobody.post("decide", **{**fields, "mark": elsewhere["mark"]}, answer="approve")).status_code == 409
    await nobody.post("decide", **{**fields, "run": "payout-2"}, answer="approve")
    assert (await votes(memory), await votes(memory, "payout-2")) == ([("alice", True)], [])


async def test_another_site_posts_a_link(memory: MemoryStore, browse: Browse) -> None:
    """Also who knows a link can't have somebody's browser answer it from elsewhere, nor without the form's token."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)
    forged = await nobody.post("decide", **fields, answer="approve", headers={"sec-fetch-site": "cross-site"})
    bare = await nobody.post("decide", **{**fields, "token": ""}, answer="approve")
    assert (forged.status_code, bare.status_code, await votes(memory)) == (403, 403, [])


async def test_who_is_signed_in_counts(memory: MemoryStore, browse: Browse) -> None:
    """A link that was passed on does nothing for somebody who is signed in as another."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    page = page_of(memory)
    refused = await browse(page, "bob").client.get(link)
    assert (refused.status_code, "signed in as bob" in refused.text) == (403, True)
    assert (await browse(page, "alice").client.get(link)).status_code == 200


@pytest.mark.parametrize(("allowed", "status"), [("all", 200), ("decide", 200), ("read", 403), (None, 401)])
async def test_the_application_says_whether_an_account_is_needed(
    memory: MemoryStore, browse: Browse, allowed: Access | None, status: int
) -> None:
    """`access=` is asked about the link's person, who has no account here, and may refuse."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    asked: list[User] = []

    def access(user: User) -> Access | None:
        asked.append(user)
        return allowed if user.by_link else "all"

    page = page_of(memory, access)
    assert (await browse(page).client.get(link)).status_code == status
    assert asked == [User("alice", by_link=True)]
    assert (await browse(page, "alice").client.get(link)).status_code == 200


async def test_signing_in_by_the_application(memory: MemoryStore, browse: Browse) -> None:
    """Where `user=` sends people to a page of its own, a link works all the same, unless `access=` wants an account."""

    def user(request: Request) -> User:
        raise HTTPException(303, headers={"location": "/login"})

    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    assert (await browse(app(memory, user=user, secret=SECRET)).client.get(link)).status_code == 200
    strict = app(memory, user=user, access=lambda user: None, secret=SECRET)
    answer = await browse(strict).client.get(link)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


async def test_a_link_opens_no_other_page(memory: MemoryStore, browse: Browse) -> None:
    """Who came by a link may see the question and no run."""
    link = decision_link(HOST, await approval(memory), by="alice", secret=SECRET)
    nobody = browse(page_of(memory))
    fields = await fill_in(nobody, link)
    assert (await nobody.get("run", run="payout-1", link=token_of(link))).status_code == 401
    assert (await nobody.post("act/cancel", run="payout-1", token=fields["token"])).status_code == 401


async def test_a_link_that_can_not_be_made(memory: MemoryStore) -> None:
    """For what is no URL, no time or no approval, a decided one, somebody who may not, and a secret that is too short."""
    waiting = await approval(memory, approvers=["alice"])
    for url in ["ops.example.com", "ftp://ops.example.com", "https://", "https://ops.example.com/?x=1"]:
        with pytest.raises(ValueError, match="url must be"):
            decision_link(url, waiting, by="alice", secret=SECRET)
    for by in ["bob", "", "$deadline"]:
        with pytest.raises(ValueError, match="name one of its approvers"):
            decision_link(HOST, waiting, by=by, secret=SECRET)
    with pytest.raises(ValueError, match="longer than zero"):
        decision_link(HOST, waiting, by="alice", secret=SECRET, lasts=timedelta(0))
    with pytest.raises(TypeError, match="lasts must be a timedelta, not 3600"):
        decision_link(HOST, waiting, by="alice", secret=SECRET, lasts=3600)  # type: ignore[arg-type]  # people try it
    with pytest.raises(TypeError, match=r"as control\.pending and notify= give it, not a str"):
        decision_link(HOST, "payout-1", by="alice", secret=SECRET)  # type: ignore[arg-type]  # people try it
    with pytest.raises(ValueError, match="16 characters"):
        decision_link(HOST, waiting, by="alice", secret="short")
    decided = await control.approve(memory, "payout-1", "approve", by="alice")
    with pytest.raises(ValueError, match="not a pending approval"):
        decision_link(HOST, decided, by="alice", secret=SECRET)


async def test_a_link_under_a_mount(memory: MemoryStore, browse: Browse) -> None:
    """It leads to where the page is mounted, and its form to the same place."""
    link = decision_link(f"{HOST}/tools/durable/", await approval(memory), by="alice", secret=SECRET)
    nobody = browse(page_of(memory), root_path="/tools/durable")
    shown: httpx.Response = await nobody.client.get(link)
    assert 'action="/tools/durable/decide"' in shown.text
