"""Which files a URL and a run id name: any legal run id, on any file system."""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from typing import Final
from urllib.parse import unquote_to_bytes

from durable_core import StoreError, StoreURL

SUFFIX: Final = ".jsonl"

# One case only, since `a` and `A` are one file on many disks; short enough for every file system.
_PLAIN: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,98}[a-z0-9_-])?")
# Windows takes these for devices, whatever follows the first dot.
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_DRIVE: Final = re.compile(r"/[A-Za-z]:(?:[/\\]|$)")


def file_name(run_id: str) -> str:
    """Return the file name of the run's log: the id itself where that is safe, else what is readable of it and a hash."""
    if _PLAIN.fullmatch(run_id) and not _DEVICE.fullmatch(run_id):
        return run_id + SUFFIX
    readable = _UNSAFE.sub("_", run_id[:60]).strip("_-")
    digest = blake2b(run_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{readable}~{digest}{SUFFIX}"


def plain_run_id(name: str) -> str | None:
    """Return the run id that `name` stands for, or None where only the log itself can tell."""
    run_id = name.removesuffix(SUFFIX)
    return run_id if file_name(run_id) == name else None


def path_of(url: StoreURL) -> str:
    """Return the path, percent-decoded. Raises `StoreError` for a URL that names none, or another machine's."""
    parts = url.parts
    if parts.fragment or str(url).endswith("#"):
        raise StoreError(f"{url} holds a '#', which ends a URL's path; write it as %23")
    machine = parts.netloc.rpartition("@")[2]
    name = (machine + parts.path).lstrip("/")
    if unquote_to_bytes(name).startswith(b"~"):
        # Only a shell makes a home of it: somebody would one day remove a folder called '~' with `rm -rf ~`.
        literal = f"file:{'/' if parts.path.endswith('/' + name) else ''}./{name}"
        raise StoreError(
            f"{url}: '~' is not expanded; write the home folder out, as in 'file:/home/ann/runs',"
            f" or {literal!r} for a folder of that name"
        )
    if parts.netloc not in ("", "localhost"):
        raise StoreError(f"{url} names the machine {machine!r}; write 'file:./{machine}{parts.path}' or 'file:///…'")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path:
        raise StoreError(f"{url} names no path; write 'file:./runs' for a folder or 'file:./runs.jsonl' for one log")
    if "\0" in path:
        raise StoreError(f"{url} holds a NUL, which no path can")
    if os.name == "nt" and _DRIVE.match(path):  # file:///C:/runs
        return path[1:]
    return path
