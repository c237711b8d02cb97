"""Any legal run id makes a safe file name, and comes back from it."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_core.testing import HOSTILE_IDS
from durable_file import FileStore
from durable_file._names import file_name, plain_run_id
from tests.file.support import step

RUN_IDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=128) | st.sampled_from(HOSTILE_IDS)
DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")


@given(RUN_IDS)
def test_safe_everywhere(run_id: str) -> None:
    """A name has no character, length, case, ending or device name that any common file system gives a meaning to."""
    name = file_name(run_id)
    assert re.fullmatch(r"[A-Za-z0-9_~.-]+\.jsonl", name)
    assert len(name) <= 110
    assert not name.startswith((".", "-"))
    assert not DEVICES.match(name)


@given(RUN_IDS, RUN_IDS)
def test_different_on_any_disk(one: str, other: str) -> None:
    """Two run ids have two names, also where the disk doesn't tell case or composition apart."""
    names = {unicodedata.normalize("NFD", file_name(run_id)).casefold() for run_id in {one, other}}
    assert len(names) == len({one, other})


def test_hostile_ids_differ() -> None:
    """All ids known to have broken stores have names of their own."""
    assert len({file_name(run_id).casefold() for run_id in HOSTILE_IDS}) == len(HOSTILE_IDS)


@pytest.mark.parametrize("run_id", ["user-42", "a", "2026-01-31", "orders_7.eu-west"])
def test_readable(run_id: str) -> None:
    """A plain id is its own file name, so that people find the log."""
    assert file_name(run_id) == f"{run_id}.jsonl"
    assert plain_run_id(f"{run_id}.jsonl") == run_id


def test_readable_start() -> None:
    """Of another id, what can be read stays in front of the hash."""
    assert file_name("Order/42 (München)").startswith("Order_42_M_nchen~")


async def test_runs_come_back(tmp_path: Path) -> None:
    """`runs` gives back the ids themselves, whatever their file names look like."""
    ids = {"..", "CON", "nul.txt", "a/b", "User", "user", "\N{BOMB}" * 128, "plain"}
    async with FileStore(tmp_path / "runs") as store:
        for run_id in ids:
            await store.append(step("a", run_id))
        assert {run_id async for run_id in store.runs()} == ids
        assert {run_id async for run_id in store.runs("\N{BOMB}")} == {"\N{BOMB}" * 128}
        assert {run_id async for run_id in store.runs("u")} == {"user"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"runs"}


async def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """A copy of a log, a log of several runs, an empty log or a folder among the logs is no run of the folder."""
    async with FileStore(tmp_path) as store, FileStore(tmp_path / "several.jsonl") as several:
        await store.append(step("a"))
        await several.append(step("a", "x"))
        (tmp_path / "run (copy).jsonl").write_bytes((tmp_path / "run.jsonl").read_bytes())
        (tmp_path / "empty.jsonl").touch()
        (tmp_path / "folder.jsonl").mkdir()
        assert [run_id async for run_id in store.runs()] == ["run"]
