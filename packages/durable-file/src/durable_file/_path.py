"""The path that a `file:` URL names."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from durable_core import StoreError, StoreURL

_DRIVE: Final = re.compile(r"/[A-Za-z]:(?:[/\\]|$)")


def path_of(url: StoreURL) -> str:
    """Return the path, percent-decoded. Raises `StoreError` for a URL that names none, or another machine's."""
    parts = url.parts
    if parts.fragment or str(url).endswith("#"):
        raise StoreError(f"{url} holds a '#', which ends a URL's path; write it as %23")
    if parts.netloc not in ("", "localhost"):
        machine = parts.netloc.rpartition("@")[2]
        if machine.startswith("~"):
            raise _not_home(url, machine + parts.path)
        raise StoreError(f"{url} names the machine {machine!r}; write 'file:./{machine}{parts.path}' or 'file:///…'")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path:
        raise StoreError(f"{url} names no path; write 'file:./runs' for a folder or 'file:./runs.jsonl' for one log")
    if path.lstrip("/").startswith("~"):
        raise _not_home(url, parts.path)
    if "\0" in path:
        raise StoreError(f"{url} holds a NUL, which no path can")
    if os.name == "nt" and _DRIVE.match(path):  # file:///C:/runs
        return path[1:]
    return path


def _not_home(url: StoreURL, path: str) -> StoreError:
    # Only a shell makes a home of it: somebody would one day remove a folder called '~' with `rm -rf ~`.
    name = path.lstrip("/")
    literal = f"file:{'/' if path != name else ''}./{name}"
    return StoreError(
        f"{url}: '~' is not expanded; write the home folder out, as in 'file:/home/ann/runs',"
        f" or {literal!r} for a folder of that name"
    )
