"""What `redact=` hides is on no page, however deep it lies."""

from __future__ import annotations

import re
from typing import Any

import pytest
from itsdangerous import URLSafeSerializer

from durable_core import MemoryStore, Runner, RunSuspended, StepFailed, control, flow
from durable_web import app, decision_link
from durable_web._asked import asked_by
from tests.web.conftest import Browse, signed_in

SECRET = "4111-1111-1111-1111"
KEY = "a secret of the tests"


@flow(wait_limit=0)
async def pay(runner: Runner, card: dict[str, Any]) -> Any:
    """Have a secret in everything that is recorded."""
    await runner.step("look", lambda: {"deep": [{"card": {"number": SECRET}}]}, returns=Any)
    await runner.publish("progress", {"card": {"number": SECRET}})
    shown = {"who": "x", "edit": {"card": {"number": SECRET}}, "list": [{"card": {"number": SECRET}}]}
    await runner.approval("approve", shown)
    return {"card": {"number": SECRET}}


@flow
async def decline(runner: Runner) -> None:
    """Fail with a secret in the message."""

    def fail() -> None:
        raise ValueError(f"card {SECRET} was declined")

    await runner.step("charge", fail)


def redact(path: tuple[str | int, ...], value: Any) -> Any:
    """Hide numbers of cards, and texts that hold one."""
    if path[-1] == "number":
        return "…"
    return value.replace(SECRET, "…") if isinstance(value, str) else value


async def test_a_secret_is_on_no_page(memory: MemoryStore, browse: Browse) -> None:
    """Of input, result, what is shown, votes, reasons, progress, and errors with their tracebacks."""
    with pytest.raises(RunSuspended):
        await pay.run(memory, run_id="pay-1", card={"number": SECRET})
    with pytest.raises(StepFailed):
        await decline.run(memory, run_id="decline-1")
    plain, alice = browse(app(memory, user=signed_in), "alice"), browse(app(memory, user=signed_in, redact=redact), "alice")
    pages: list[tuple[str, dict[str, str]]] = [
        ("", {}),
        ("run", {"run": "pay-1"}),
        ("run", {"run": "decline-1"}),
        *(("step", {"run": "pay-1", "step": step}) for step in ("look", "approve", "progress")),
        *(("step", {"run": "decline-1", "step": step}) for step in ("charge", "$flow")),
        ("runs", {}),
        ("work", {}),
    ]
    assert len([path for path, query in pages if SECRET in (await plain.get(path, **query)).text]) >= 7
    for _ in range(2):
        for path, query in pages:
            shown = await alice.get(path, **query)
            assert (shown.status_code, SECRET in shown.text) == (200, False), (path, query)
        secret = {"number": SECRET}
        await control.approve(memory, "pay-1", "approve", by="bob", reason=f"card {SECRET}", value={"card": secret})
        with pytest.raises(StepFailed):
            await decline.run(memory, run_id="decline-1")
        await pay.run(memory, run_id="pay-1")


async def test_a_redacted_value_is_not_offered_for_editing(memory: MemoryStore, browse: Browse) -> None:
    """Or the person who approves would send back what stands in its place."""
    with pytest.raises(RunSuspended):
        await pay.run(memory, run_id="pay-1", card={})
    shown = (await browse(app(memory, user=signed_in, redact=redact), "alice").get()).text
    assert SECRET not in shown
    for fields in re.findall(r"<textarea[^>]*>([^<]*)", shown):
        assert not fields.strip()


async def test_what_is_hidden_can_not_be_guessed(memory: MemoryStore, browse: Browse) -> None:
    """No page and no link holds a hash of what is shown, by which somebody could try all numbers of a card."""
    with pytest.raises(RunSuspended):
        await pay.run(memory, run_id="pay-1", card={})
    record = await memory.get("pay-1", "approve")
    assert record is not None
    assert record.fingerprint
    page = app(memory, user=signed_in, redact=redact, secret=KEY, notify=lambda approval: None)
    assert await page.notify_once() == 1
    alice = browse(page, "alice")
    link = decision_link(alice.base, record, by="alice", secret=KEY)
    pages = [("", {}), ("step", {"run": "pay-1", "step": "approve"}), ("step", {"run": "pay-1", "step": "$notified/approve"})]
    texts = [(await alice.get(path, **query)).text for path, query in pages] + [(await alice.client.get(link)).text]
    texts.append(str(URLSafeSerializer("").load_payload(link.partition("link=")[2].rsplit(".", 2)[0].encode())))
    assert all("pay-1" in text for text in texts)
    for text in texts:
        assert asked_by(record).digest not in text
        assert record.fingerprint not in text


@pytest.mark.parametrize("hidden", [("show",), ("show", "edit"), ("show", "edit", "card"), ("show", "edit", "card", "number")])
async def test_wherever_it_is_redacted(memory: MemoryStore, browse: Browse, hidden: tuple[str, ...]) -> None:
    """What is edited is redacted as what is shown, by the same paths, in the whole or in a part."""

    def redact(path: tuple[str | int, ...], value: Any) -> Any:
        if path == hidden:
            return {**value, "edit": 1} if path == ("show",) else {1, 2}
        return "…" if path[:3] == ("show", "list", 0) else value

    with pytest.raises(RunSuspended):
        await pay.run(memory, run_id="pay-1", card={})
    shown = await browse(app(memory, user=signed_in, redact=redact), "alice").get()
    assert (shown.status_code, SECRET in shown.text) == (200, False)


async def test_a_redact_that_raises_shows_nothing(memory: MemoryStore, browse: Browse, caplog: pytest.LogCaptureFixture) -> None:
    """The page says so in the value's place, and the log why."""

    def fails(path: tuple[str | int, ...], value: Any) -> Any:
        return path[7]

    with pytest.raises(RunSuspended):
        await pay.run(memory, run_id="pay-1", card={"number": SECRET})
    shown = await browse(app(memory, user=signed_in, redact=fails), "alice").get("run", run="pay-1")
    assert (shown.status_code, SECRET in shown.text, "redact= raised" in shown.text) == (200, False, True)
    assert "IndexError" in caplog.text


async def test_a_long_reason_is_cut(memory: MemoryStore, browse: Browse) -> None:
    """Whoever may decide may write a megabyte; the pages that show it stay small."""
    with pytest.raises(RunSuspended):
        await pay.run(memory, run_id="pay-1", card={})
    await control.cancel(memory, "pay-1", reason="x" * 900_000, by="bob")
    shown = await browse(app(memory, user=signed_in), "alice").get("run", run="pay-1")
    assert len(shown.content) < 100_000
    assert "880,000 more" in shown.text


async def test_a_large_value_is_cut(memory: MemoryStore, browse: Browse) -> None:
    """A page stays small, however large, wide or deep a value is, and says how much is left out."""
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    for number, value in enumerate(
        [
            ["x" * 1000] * 10_000,
            {f"k{n}": n for n in range(100_000)},
            deep,
            "y" * 10_000_000,
            {"z" * 1_000_000: ["y" * 20_000] * 2000},
        ]
    ):
        await control.send(memory, "run", f"event-{number}", value)
        shown = await browse(app(memory, user=signed_in), "alice").get("step", run="run", step=f"event-{number}")
        assert shown.status_code == 200
        assert len(shown.content) < 4_000_000
        assert "more" in shown.text
