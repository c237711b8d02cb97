"""What the contract is checked with: ids, values and whole records that have broken stores before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, TypeAlias, get_args

from durable_core.record import Kind, Status, StepError, StepRecord
from durable_core.store import Store

OpenStore: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
"""What the fixture `open_store` returns: each call opens one more store on the same place."""

SIMILAR_IDS: Final = (
    *("run", "Run", "RUN", "run.", "run ", " run", "run/", "/run", "run1", "run10", "ru"),
    *("café", "cafe\N{COMBINING ACUTE ACCENT}", "ß", "ss", "SS", "K", "\N{KELVIN SIGN}"),
    *("i", "I", "\N{LATIN SMALL LETTER DOTLESS I}", "İ"),
    *("0", "00", "1", "01", "x" * 511, "x" * 512, "x" * 511 + "X", "é" * 256, "\N{BOMB}" * 128, "\N{BOMB}" * 127),
)
"""Ids that a file system, a collation, a pattern or a cut at some length may take for one another."""

HOSTILE_IDS: Final = (
    *SIMILAR_IDS,
    *(".", "..", "../..", "../../etc/passwd", "/", "//", "/etc/passwd", "a/b", "a//b", "a/./b", "a/../b", "~", "-", "-rf"),
    *("\\", "\\\\server\\share", "C:", "C:\\a", "CON", "con", "nul.txt", "COM1", "AUX", "a.lock", "a.jsonl", ".hidden"),
    *("%", "%%", "%2F", "%2f", "%00", "%25", "_", "__", "*", "?", "[a]", "[!a]", "[^a]", "{braces}", "{}", "{0}", "{a,b}"),
    *("'", '"', "`", "'; drop table steps; --", "--", "/*", "\\'", "$1", ":a", "a:b", "a::b", "#", "a#b", "a?b=c&d", "a=b", "+"),
    *("$", "$flow", "${HOME}", "$(id)", "<a>", "|", "&", ";", ",", "^", "(", "a b", "  "),
    *("null", "None", "true", "[]", '{"a":1}'),
    *("\N{NO-BREAK SPACE}", "\N{ZERO WIDTH SPACE}", "\N{RIGHT-TO-LEFT OVERRIDE}a", "\u2028"),
    *("\ufeff", "\ufffd", "\ue000", "\U0010ffff"),
    *("日本語", "שלום", "👩\u200d👩\u200d👧", "e\N{COMBINING ENCLOSING KEYCAP}"),
)
"""Legal ids that mean something to paths, keys, patterns, SQL or terminals. All differ; a store keeps all of them apart."""

# No \x1f or \0 among them: no id may hold one, so a store may join with those.
SEPARATORS: Final = ("%2F", "::", "__", "//", "--", *"/:#?|.,-_\\ @$=&;~!+*")

RESULTS: Final = (
    *(b"null", b"true", b"0", b"-0", b"-0.0", b"1.0", b"1e400", b"5e-324", b"0.1", b"1E+2", b"12345678901234567890.5"),
    *(b"9007199254740993", b"18446744073709551616", b"1" + b"0" * 5000),
    *(b'""', b'"\\u0000"', b'"a\\u0000b"', b'"\\u001f\\u007f"', b'"\\/"', b'"/"', b'"\\u0041"'),
    *(b'"\\ud83d\\ude00"', b'"\\\\u0000"'),
    *('"é😀\u2028\u2029\ufeff"'.encode(), b'"\x7f"', b'"\'; --"', b'"%s {0} $1 :a \\\\ \\" ` "'),
    *(b"[]", b"{}", b"[1, 2,3]", b'{ "b":1,"a" : 2}', b'{"a":1,"a":2}', b'{"\\u0000":{"":[]}}'),
    *(b'{"1":1}', b'"null"', b"[" * 200 + b"]" * 200),
)
"""JSON in unusual spellings: a store returns the same bytes."""

_NOTES: Final[tuple[Any, ...]] = (
    *(False, 0, 1.0, 2**53 + 1, "", "a\0b", [], {}),
    {"by": "ålice", "reason": "'; --\n\t\\ \"", "z": 1, "a": [1, 1.5, None, True, {"": {}}], "\0": "\x1f"},
)
_MOMENT: Final = datetime(2026, 3, 29, 1, 59, 59, 999_999, tzinfo=UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ERROR: Final = StepError(
    type="stripe.error.CardError",
    message="declined: 'é😀'\n\t\\x00 %s {0} $1",
    traceback="Traceback (most recent call last):\n" + '  File "flow.py", line 1\n' * 400,
    bases=("stripe.error.StripeError", "Exception", "BaseException"),
)


def entry(run_id: str = "run", step_id: str = "step", revision: int = 0, **fields: Any) -> StepRecord:
    """Make a record for a slot; the id, random, tells it from every other one."""
    return StepRecord(run_id=run_id, step_id=step_id, revision=revision, **fields)


def varied() -> list[StepRecord]:
    """Records that give every field the values that a store changes most easily."""
    plain = [
        entry(step_id="defaults"),
        entry(step_id="name", name="Charge the card — 'é😀' %s\n\\x00"),
        entry(step_id="fingerprint", fingerprint="0e1234"),
        entry(step_id="attempt", attempt=2**31),
        entry(step_id="id", id="0"),
        entry(step_id="until-never", status="waiting", kind="event", until=datetime.max.replace(tzinfo=UTC)),
        entry(step_id="until-past", status="waiting", kind="sleep", until=datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        entry(step_id="error", status="failure", error=_ERROR, attempt=3, started_at=_MOMENT, ended_at=_MOMENT),
        entry(step_id="error-bare", status="failure", error=StepError(type="ValueError")),
        entry(step_id="backwards", started_at=_MOMENT, ended_at=_MOMENT - timedelta(microseconds=1)),
        entry(step_id="epoch", started_at=_EPOCH, ended_at=_EPOCH - timedelta(microseconds=1)),
        entry(step_id="zone", started_at=_MOMENT.astimezone(timezone(timedelta(hours=5, minutes=45)))),
    ]
    statuses = [entry(step_id=f"status {status}", status=status) for status in get_args(Status)]
    kinds = [entry(step_id=f"kind {kind}", kind=kind) for kind in get_args(Kind)]
    notes = [entry(step_id=f"note {number}", note=note) for number, note in enumerate(_NOTES)]
    everything = entry(
        step_id="everything",
        revision=7,
        status="failure",
        kind="approval",
        name="all of it",
        result=b'{"a": 1e400}',
        error=_ERROR,
        note=_NOTES[-1],
        until=_MOMENT,
        attempt=9,
        started_at=_MOMENT,
        ended_at=_MOMENT + timedelta(microseconds=1),
        fingerprint="a" * 64,
    )
    return [*plain, *statuses, *kinds, *notes, everything]
