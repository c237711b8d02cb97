"""Whatever people type or send: URLs of stores, the command's values, files of exported runs; `tests/worker` has webhooks."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_cli._kinds import JsonObject, JsonValue, Moment, Span
from durable_cli._move import read
from durable_core import StoreError, open_store
from tests.fuzz.fuzzing import DEEP_JSON, VALUES, damaged, fuzzed, json_bytes, kept
from tests.fuzz.test_records import GOOD, other_fields


def text_of(data: bytes) -> str:
    """Return bytes as a program gets them of a shell."""
    return data.decode("utf-8", "surrogateescape")


URLS = (
    "memory:",
    "file:./runs",
    "file:./runs/user-42.jsonl",
    "sqlite:./runs.db?lock_timeout=5",
    "redis://user:sesame@host:6379/0?ttl=60&wait=1&waitaof=1",
    "rediss://host",
    "unix:///run/redis.sock?db=1",
    "postgresql://user:sesame@host:5432/db?sslmode=require",
    "postgres://host/db",
    "s3://bucket/prefix?endpoint_url=http://localhost:9000&region_name=eu",
)
"""Of all stores, some with the password `sesame`."""
PARTS = [*"/:?&=@#%[]~é", "://", "//", "%00", "%ff", "[::1]", "..", "65536", "1e9", "host", "redis", "s3", "file", "sqlite"]
TEXT = st.one_of(
    damaged(st.sampled_from(URLS).map(str.encode)).map(text_of),
    st.lists(st.sampled_from([*PARTS, " ", "\0", "\n", "\ud800"]), max_size=8).map("".join),
    st.text(max_size=20),
)


def check_url(url: str) -> None:
    """A URL makes a store, which connects to nothing yet, or a `StoreError` that shows no password."""
    try:
        store = open_store(url)
    except StoreError as error:
        said = str(error)
    else:
        said = repr(store)
    assert "sesame" not in said


@pytest.mark.parametrize("url", kept("urls"))
def test_kept_urls(url: bytes) -> None:
    check_url(text_of(url))


@fuzzed
@given(TEXT)
def test_any_url(url: str) -> None:
    check_url(url)


def answered(kind: click.ParamType[Any], text: str) -> Any:
    """Return what the command takes a text for; None where it is refused, which is exit code 2."""
    try:
        return kind.convert(text, None, None)
    except click.UsageError:
        return None


KINDS: dict[str, tuple[click.ParamType[Any], Callable[[Any], bool]]] = {
    "--older": (Span(), lambda value: isinstance(value, timedelta) and value >= timedelta(0)),
    "--since": (Moment(), lambda value: isinstance(value, datetime) and value.utcoffset() == timedelta(0)),
    "--at": (Moment(ahead=True), lambda value: isinstance(value, datetime) and value.utcoffset() == timedelta(0)),
    "--input": (JsonObject(), lambda value: isinstance(value, dict)),
    "--value": (JsonValue(), lambda value: True),
}
NUMBERS = st.sampled_from(["0", "1", "0.5", "9" * 30, "٣", "1e9", "-1", "nan", "inf", "²"])
TIMES = st.sampled_from(
    ["2026-03-29T02:30", "0001-01-01", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00+23:59", "2026-W01-1", "20260101T00"]
)
TYPED = st.one_of(
    st.tuples(NUMBERS, st.sampled_from(["", "s", "m", "h", "d", "w", "y", " d", "\n", "d\n"])).map("".join),
    damaged(TIMES.map(str.encode)).map(text_of),
    TIMES,
    (VALUES.map(json_bytes) | damaged(VALUES.map(json_bytes)) | DEEP_JSON).map(text_of),
    st.text(max_size=12),
).filter(lambda text: not text.startswith(("@", "-")))


def check_typed(option: str, text: str) -> None:
    kind, is_right = KINDS[option]
    value = answered(kind, text)
    assert value is None or is_right(value)


@pytest.mark.parametrize("option", KINDS)
@pytest.mark.parametrize("text", kept("typed"))
def test_kept_values(option: str, text: bytes) -> None:
    check_typed(option, text_of(text))


@pytest.mark.parametrize("option", KINDS)
def test_any_value(option: str) -> None:
    """Of what is typed for an option: a value of its kind, or a refusal in words."""

    @fuzzed
    @given(TYPED)
    def check(text: str) -> None:
        check_typed(option, text)

    check()


@pytest.mark.parametrize("text", ["@", "@\0", "@/nowhere/at/all", "@" + "x" * 5000, "@/"])
def test_a_file_that_cannot_be_read_is_refused(text: str) -> None:
    assert answered(JsonObject(), text) is None


def check_export(file: bytes) -> None:
    """Each line is an entry, or the refusal says which isn't."""
    with suppress(click.ClickException):
        entries = read(io.BytesIO(file), "runs.jsonl")
        assert len(entries) == sum(1 for line in file.split(b"\n") if line.strip())


@pytest.mark.parametrize("file", kept("exports"))
def test_kept_exports(file: bytes) -> None:
    check_export(file)


@fuzzed
@given(damaged(st.lists(GOOD | other_fields(), max_size=4).map(b"\n".join)) | DEEP_JSON)
def test_any_export(file: bytes) -> None:
    check_export(file)
