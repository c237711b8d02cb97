"""Whatever stands in a log is shown harmlessly: no terminal is moved, no text turned around, no markup obeyed."""

from __future__ import annotations

import asyncio
import io
import re
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from durable_cli._asked import Asked
from durable_cli._pending import list_pending
from durable_cli._runs import Filter, list_runs
from durable_cli._show import show, show_step
from durable_cli._text import harmless
from durable_cli._watch import watch
from durable_cli._why import why
from durable_core import MemoryStore, StepError, StepRecord
from tests.cli.terminal import Terminal
from tests.cli.test_show import appended

HOSTILE = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066a\u2069",
    "[red]x[/red]",
    "[/]",
    "a\rb",
    "\u2028",
    "x" * 600,
]
AT = datetime(2026, 3, 29, tzinfo=UTC)
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))
IDS = TEXT.map(lambda text: "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cs"))[:100]).filter(
    lambda text: text and not text.startswith("$")
)
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


async def printed(run_id: str, step_id: str, text: str, status: Any) -> str:
    """Record a text wherever one can stand, and return what all of the commands print."""
    store = MemoryStore()
    ended: dict[str, Any] = {"started_at": AT, "ended_at": AT}
    error = StepError(f"Bad{text}", text, f"Traceback\n{text}")
    vote = {"approved": False, "by": text, "reason": text, "at": AT.isoformat()}
    shown = {"show": text, "approvers": [text], "votes": [vote], "quorum": 2}
    asked_for = {"input": {"x": text}, "cancelled": {"reason": text}}
    for fields in (
        {"step_id": step_id, "name": text, "kind": "approval", "status": "waiting", "note": shown},
        {"step_id": f"{step_id}2", "name": text, "status": "failure", "error": error, "note": {"by": text, "reason": text}},
        {"step_id": f"{step_id}3", "kind": "flow", "status": "waiting", "note": {"run": f"{run_id}c"}},
        {"step_id": "$flow", "name": text, "kind": "flow", "status": "started", "note": asked_for},
    ):
        await store.append(StepRecord(run_id=run_id, **ended, **fields))
    flow: dict[str, Any] = {"kind": "flow", "name": text or "f", "revision": 1, "status": status, **ended}
    if status == "failure":
        flow |= {"error": error, "note": {"failed": [step_id], "answered_by": [step_id]}}
    elif status == "waiting":
        flow |= {"note": {"parked": {"step": step_id, "why": text, "mend": text}}}
    await store.append(StepRecord(run_id=run_id, step_id="$flow", **flow))
    asked, out = Asked(None, as_json=False), io.StringIO()
    with redirect_stdout(out):
        await list_runs(store, asked, Filter("", (), None, None, None, 20))
        await list_pending(store, asked, "")
        await show(store, asked, run_id, all_steps=False)
        for number in ("", "2", "3"):
            await show_step(store, asked, run_id, f"{step_id}{number}")
        await why(store, asked, run_id)
        if status != "waiting":
            await watch(store, asked, run_id)
    return out.getvalue()


@settings(max_examples=60, deadline=None)
@given(run_id=IDS, step_id=IDS, text=TEXT, status=st.sampled_from(["success", "failure", "waiting"]))
def test_no_text_of_a_log_moves_a_terminal(run_id: str, step_id: str, text: str, status: str) -> None:
    """Nothing that is printed is a control character but newlines and tabs, or turns the direction of text."""
    for char in asyncio.run(printed(run_id, step_id, text, status)):
        assert char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp"), repr(char)
        assert unicodedata.bidirectional(char) not in TURNING, repr(char)


def test_markup_is_text() -> None:
    """What looks like rich's markup, or like an emoji's name, stands there as it is."""
    out = asyncio.run(printed("[red]r[/red]", "[bold]s", ":smile: [/]", "failure"))
    for text in ("[red]r[/red]", "[bold]s", ":smile: [/]"):
        assert text in out


@given(st.text() | st.sampled_from(HOSTILE))
def test_harmless_text_reads_as_it_was(text: str) -> None:
    """What is escaped is escaped alone, and harmless text stays as it is."""
    shown = harmless(text)
    assert harmless(shown) == shown
    assert shown == text or any(unicodedata.category(char)[0] in "CZ" for char in text)


def test_values_of_any_size_are_cut(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """A result of 8 MiB is a line in the timeline, and a few pages in full."""
    big = b'"' + b"x" * (8 << 20) + b'"'
    error = StepError("OSError", "line\n" * 200, "trace\n" * 2000)
    url = appended(
        tmp_path,
        StepRecord(run_id="r", step_id="big", result=big),
        StepRecord(run_id="r", step_id="bad", status="failure", error=error),
    )
    for columns in (80, 140):
        screen = terminal("show", "r", "--store", url, columns=columns)
        assert screen.end() == 0
        assert max(len(line) for line in screen.plain.splitlines() if "durable" not in line) <= columns
    full = terminal("show", "r", "--step", "big", "--store", url)
    assert full.end() == 0
    assert len(full.plain) < 15_000
    assert "in all 8,388,610 characters: --json has them" in full.plain


def test_ids_of_any_length_are_whole(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """Of 512 bytes too, which take several lines, and the other columns stand below."""
    long = "ü" * 256
    url = appended(
        tmp_path, StepRecord(run_id=long, step_id="s"), StepRecord(run_id=long, step_id="$flow", kind="flow", name="f" * 300)
    )
    screen = terminal("runs", "--store", url)
    assert screen.end() == 0
    assert long in screen.plain.replace("\n", "")
    assert "f" * 24 not in screen.plain


def test_no_colour_where_nobody_wants_it(terminal: Callable[..., Terminal], seeded: str) -> None:
    """NO_COLOR is obeyed on a terminal."""
    screen = terminal("show", "refund-1", "--store", seeded, env={"NO_COLOR": "1"})
    assert screen.end() == 0
    assert not re.search(r"\x1b\[3[0-9]", screen.seen)
