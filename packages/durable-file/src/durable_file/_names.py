"""File names for run ids, and paths for URLs. Every legal run id works on every file system."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from durable_core import StoreURL
from durable_core.stores.urls import local_path

SUFFIX: Final = ".jsonl"

# Lower case only, because `a` and `A` are one file on many disks. Short enough for every file system.
_PLAIN: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,98}[a-z0-9_-])?")
# Windows treats these as devices, whatever follows the first dot.
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")


def file_name(run_id: str) -> str:
    """Return the file name of the run's log: the id where that is safe, else its readable part and a hash."""
    if _PLAIN.fullmatch(run_id) and not _DEVICE.fullmatch(run_id):
        return run_id + SUFFIX
    readable = _UNSAFE.sub("_", run_id[:60]).strip("_-")
    digest = blake2b(run_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{readable}~{digest}{SUFFIX}"


def plain_run_id(name: str) -> str | None:
    """Return the run id that a file name spells out. None for a hashed one: then only the log says it."""
    run_id = name.removesuffix(SUFFIX)
    return run_id if file_name(run_id) == name else None


def path_of(url: StoreURL) -> str:
    """Return the path, percent-decoded. Raises `StoreError` for a URL without a path, or with another machine's."""
    return local_path(url, example="runs", advice="'file:./runs' for a folder or 'file:./runs.jsonl' for one log")
