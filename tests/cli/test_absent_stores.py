"""A store that isn't there: most commands say so and make none, because its path is probably mistyped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from durable_cli.main import SECTIONS
from tests.cli.acting import ROOT
from tests.cli.conftest import Durable

NEED_A_STORE: Final[Mapping[str, Sequence[str]]] = {
    "runs": (),
    "show": ("r1",),
    "watch": ("r1",),
    "wait": ("r1",),
    "why": ("r1",),
    "pending": (),
    "approve": ("r1", "approve", "--yes"),
    "reject": ("r1", "approve", "--yes"),
    "send": ("r1", "packed"),  # whose run need not be there
    "retry": ("--status", "failed", "--yes"),
    "resolve": ("r1", "pay", "--reason", "paid"),
    "cancel": ("r1",),
    "fork": ("r1", "r2", "--before", "pay"),
    "copy": ("--prefix", "", "memory:"),
    "export": ("--prefix", ""),
    "clean": ("--yes",),
    "check": ("tests.cli.acting:pay",),
}
MAKE_A_STORE: Final[Mapping[str, Sequence[str]]] = {
    "start": ("tests.cli.acting:pay", "r1"),
    "run": ("tests.cli.acting:pay", "r1", "--input", f'{{"opens": "{ROOT}"}}'),
    "sweep": ("tests.cli.acting:pay",),
}
IN_OTHER_TESTS: Final = {"import", "serve", "web", "doctor", "stores"}
"""They make a store, or use none."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NEED_A_STORE)
@pytest.mark.parametrize("url", ["sqlite:typo.db", "file:./typo", "file:./typo.jsonl", "sqlite:no/folder/typo.db"])
def test_nothing_is_made(durable: Durable, folder: Path, name: str, url: str) -> None:
    """One error says which path is absent and what to do, with exit code 3, as for a run that isn't there."""
    done = durable(name, *NEED_A_STORE[name], "--store", url)
    assert (done.code, done.out) == (3, "")
    path = folder / url.partition(":")[2]
    assert done.err == (
        f"Error: there is no store at {path}: correct its path, or make the store by a command that brings runs, such as"
        " `durable start`\n"
    )
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize("name", MAKE_A_STORE)
def test_a_store_is_made_for_new_runs(durable: Durable, folder: Path, name: str) -> None:
    assert durable(name, *MAKE_A_STORE[name], "--store", "sqlite:new.db").code == 0
    assert (folder / "new.db").exists()


def test_a_copy_makes_its_target(durable: Durable, folder: Path) -> None:
    durable("start", *MAKE_A_STORE["start"], "--store", "sqlite:new.db")
    assert durable("copy", "r1", "file:./copies", "--store", "sqlite:new.db").code == 0
    assert (folder / "copies").is_dir()
    exported = durable("export", "r1", "--store", "sqlite:new.db").out
    assert durable("import", "--store", "sqlite:imported.db", input=exported).code == 0
    assert (folder / "imported.db").exists()


def test_an_empty_store_is_there(durable: Durable, folder: Path) -> None:
    """A folder or database without runs is no mistake."""
    (folder / "runs").mkdir()
    assert durable("runs", "--store", "file:./runs").out == "There are no runs in this store.\n"


def test_every_command_is_known() -> None:
    names = {name for modules in SECTIONS.values() for several in modules.values() for name in several}
    assert names == {*NEED_A_STORE, *MAKE_A_STORE, *IN_OTHER_TESTS}
