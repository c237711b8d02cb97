"""Which file a URL names, and what is refused."""

from pathlib import Path

import pytest

from durable_core import StepRecord, StoreError, open_store
from durable_sqlite import SqliteStore


def step(step_id: str) -> StepRecord:
    return StepRecord(run_id="run", step_id=step_id)


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("sqlite:./runs.db", "runs.db"),
        ("sqlite:runs", "runs"),
        ("SQLITE:a/../runs.db", "runs.db"),
        ("sqlite:my%20runs%23%3F%25.db", "my runs#?%.db"),
        ("sqlite:münchen.db", "münchen.db"),
        ("sqlite:./~", "~"),
        ("sqlite:file:x.db", "file:x.db"),
        ("sqlite:./:memory:", ":memory:"),
        ("sqlite:runs.db?lock_timeout=1.5", "runs.db"),
    ],
)
async def test_relative(url: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path counts from where the store was made, wherever the program goes later."""
    monkeypatch.chdir(tmp_path)
    async with open_store(url) as store:
        monkeypatch.chdir("/")
        await store.append(step("a"))
    assert [file.name for file in tmp_path.iterdir()] == [written]


@pytest.mark.parametrize("prefix", ["sqlite:", "sqlite://", "sqlite://localhost"])
async def test_absolute(prefix: str, tmp_path: Path) -> None:
    """An absolute path may be written in all the ways that URLs have for it."""
    path = (tmp_path / "runs.db").as_posix()
    async with open_store(prefix + ("" if path.startswith("/") or prefix == "sqlite:" else "/") + path) as store:
        await store.append(step("a"))
    assert (tmp_path / "runs.db").is_file()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite:", "has no path; write 'sqlite:./runs.db'"),
        ("sqlite::memory:", "a database in memory lives in one connection; write 'memory:'"),
        ("sqlite:./runs.db?journal_mode=off", "unknown option 'journal_mode' in .*; known: lock_timeout"),
        ("sqlite:./runs.db?lock_timeout=-1", "option 'lock_timeout' in .*: expected a positive number of seconds"),
        ("sqlite:./runs.db#1", "percent-encode it as %23"),
        ("sqlite://runs/a.db", "names the machine 'runs'; write 'sqlite:./runs/a.db'"),
        ("sqlite:a%00b", "contains a NUL"),
        ("sqlite:~/runs.db", "as in 'sqlite:/home/ann/runs.db', or 'sqlite:\\./~/runs.db' for a path of that name"),
    ],
)
def test_refused(url: str, complaint: str) -> None:
    """A URL that names no file of this machine is refused when the store is made, saying what to write."""
    with pytest.raises(StoreError, match=complaint):
        open_store(url)


@pytest.mark.parametrize("path", ["", "a\0b", b"runs"])
def test_paths_refused(path: str) -> None:
    """Something that is not a path is refused at once."""
    with pytest.raises(ValueError, match=r"is not a path; expected one such as '\./runs\.db'"):
        SqliteStore(path)


def test_memory_is_another_store() -> None:
    """A database in memory would be another one for each connection."""
    with pytest.raises(ValueError, match=r"use MemoryStore\(\), or the URL 'memory:'"):
        SqliteStore(":memory:")


async def test_a_link_is_followed(tmp_path: Path) -> None:
    """A link to a database is that database, with its locks: two names don't make two logs."""
    link = tmp_path / "link.db"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real" / "runs.db")
    async with SqliteStore(link) as linked, SqliteStore(tmp_path / "real" / "runs.db") as real:
        first = await real.append(step("a"))
        assert await linked.append(step("a")) == first
        async with linked.lock("run"):
            assert await real.holder("run") is not None
    assert not (tmp_path / ".durable.locks").exists()


def test_repr(tmp_path: Path) -> None:
    """A store shows its path."""
    assert repr(SqliteStore(tmp_path / "a.db")) == f"SqliteStore({str(tmp_path / 'a.db')!r})"
