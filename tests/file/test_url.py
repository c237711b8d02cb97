"""Which files a URL or a path names, and what is said where it can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_core import StoreError, open_store
from durable_file import FileStore
from tests.file.support import step


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("file:./runs", "runs/run.jsonl"),
        ("file:runs/", "runs/run.jsonl"),
        ("FILE:a/../runs", "runs/run.jsonl"),
        ("file:./runs/user-42.jsonl", "runs/user-42.jsonl"),
        ("file:my%20runs%23%3F%25", "my runs#?%/run.jsonl"),
        ("file:münchen.jsonl", "münchen.jsonl"),
        ("file:./~/runs", "~/runs/run.jsonl"),
        ("file:runs~/~a", "runs~/~a/run.jsonl"),
    ],
)
async def test_relative(url: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path counts from where the store was made, wherever the program goes later."""
    monkeypatch.chdir(tmp_path)
    async with open_store(url) as store:
        monkeypatch.chdir("/")
        await store.append(step("a"))
    assert (tmp_path / written).is_file()


@pytest.mark.parametrize("prefix", ["file:", "file://", "file://localhost"])
async def test_absolute(prefix: str, tmp_path: Path) -> None:
    """An absolute path may be written in all the ways that URLs have for it."""
    path = (tmp_path / "runs").as_posix()
    async with open_store(prefix + ("" if path.startswith("/") or prefix == "file:" else "/") + path) as store:
        await store.append(step("a"))
    assert (tmp_path / "runs" / "run.jsonl").is_file()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("file:", "has no path; write 'file:./runs'"),
        ("file:./runs?sync=off", "unknown option 'sync'"),
        ("file:./runs#1", "percent-encode it as %23"),
        ("file:./runs#", "percent-encode it as %23"),
        ("file://runs/a", "names the machine 'runs'; write 'file:./runs/a'"),
        ("file://me:secret@runs/a", "^file://runs/… names the machine 'runs'; write 'file:./runs/a'"),
        ("file:a%00b", "contains a NUL"),
        ("file:~/runs", "write the home folder out, .* or 'file:\\./~/runs' for a path of that name"),
        ("file:~ann", "or 'file:\\./~ann' for"),
        ("file:%7E/my%20runs", "or 'file:\\./%7E/my%20runs' for"),
        ("file:///~/runs", "or 'file:/\\./~/runs' for"),
        ("file://~/runs", "or 'file:\\./~/runs' for"),
    ],
)
def test_refused(url: str, complaint: str) -> None:
    """A URL that names no file of this machine is refused when the store is made, saying what to write."""
    with pytest.raises(StoreError, match=complaint):
        open_store(url)


@pytest.mark.parametrize("path", ["", "a\0b", b"runs"])
def test_paths_refused(path: str) -> None:
    """Something that is not a path is refused at once."""
    with pytest.raises(ValueError, match=r"is not a path; expected one such as '\./runs'"):
        FileStore(path)


async def test_folder_in_the_place_of_a_log(tmp_path: Path) -> None:
    """A path that ends in `.jsonl` and is a folder is one clear error, for writers and readers."""
    folder = tmp_path / "x.jsonl"
    folder.mkdir()
    async with FileStore(folder) as store:
        with pytest.raises(StoreError, match=r"x\.jsonl is a folder, but a path that ends in \.jsonl is one log"):
            await store.append(step("a"))
        with pytest.raises(StoreError, match="is a folder, but"):
            await store.list("run")


@pytest.mark.parametrize("below", ["", "deeper/runs", "deeper/x.jsonl"])
async def test_file_in_the_place_of_a_folder(tmp_path: Path, below: str) -> None:
    """A file where a folder is needed is one clear error that names the file."""
    (tmp_path / "runs").write_text("notes")
    async with FileStore(tmp_path / "runs" / below) as store:
        with pytest.raises(StoreError, match="runs is a file where a folder is needed"):
            await store.append(step("a"))
        with pytest.raises(StoreError, match="runs is a file where a folder is needed"):
            await store.list("run")
        with pytest.raises(StoreError, match="runs is a file where a folder is needed"):
            async with store.lock("run"):
                pass
    assert (tmp_path / "runs").read_text() == "notes"


async def test_reading_creates_nothing(path: Path) -> None:
    """Reading a place that isn't there finds no runs, and leaves it as it was."""
    async with FileStore(path) as store:
        assert [*await store.list("run")] == []
        assert await store.get("run", "a") is None
        assert [record async for record in store.scan("run")] == []
        assert [run_id async for run_id in store.runs()] == []
        await store.clear("run")
    assert [*path.parent.iterdir()] == []


async def test_a_link_is_followed(tmp_path: Path) -> None:
    """A link to a log is that log, with its lock: two names don't make two logs."""
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "real" / "log.jsonl")
    async with FileStore(link) as linked, FileStore(tmp_path / "real" / "log.jsonl") as real:
        first = await real.append(step("a"))
        assert await linked.append(step("a")) == first
        async with linked.lock("run"):
            assert not (tmp_path / ".durable.lock").exists()


async def test_one_log_and_folder_are_one_place(tmp_path: Path) -> None:
    """A log of a folder may be opened as one log at the same time: both see the same locks."""
    async with FileStore(tmp_path) as folder, FileStore(tmp_path / "run.jsonl") as one:
        first = await folder.append(step("a"))
        assert await one.append(step("a")) == first
        second = await one.append(step("b"))
        assert [*await folder.list("run")] == [first, second]


def test_repr(tmp_path: Path) -> None:
    """A store shows its path."""
    assert repr(FileStore(tmp_path)) == f"FileStore({str(tmp_path)!r})"
