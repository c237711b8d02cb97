"""What a shell completes for the commands that act."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_core import Store
from tests.cli.acting import asked, failed, on_url
from tests.cli.conftest import Durable


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("approve r", ["r1", "r2"]),
        ("approve r1 ", ["approve"]),
        ("retry r2 ", ["charge", "look-up"]),
        ("retry --flow ", ["pay", "refund"]),
        ("cancel --status wa", ["waiting"]),
        ("approve nobody ", []),
        ("fork r2 r9 --before l", ["look-up"]),
    ],
)
def test_names_are_completed_from_the_store(
    durable: Durable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, found: list[str]
) -> None:
    """Runs, steps of the run that was named, those alone that wait where only they count, flows and states."""

    async def seed(store: Store) -> None:
        await asked(store, "r1")
        await failed(store, "r2")

    url = f"sqlite:{tmp_path / 'durable.db'}"
    on_url(url, seed)
    begun = words.split(" ")
    monkeypatch.setenv("DURABLE_STORE", url)
    monkeypatch.setenv("_DURABLE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"durable {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(begun)))
    done = durable()
    assert (done.code, done.err) == (0, "")
    assert [line.removeprefix("plain,") for line in done.out.splitlines() if line] == found
