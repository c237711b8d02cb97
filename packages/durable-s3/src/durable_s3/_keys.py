"""Object keys for ids: readable in the console, and never longer than S3's 1,024 bytes."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from typing import Final
from urllib.parse import quote, unquote

from durable_core.errors import StoreError
from durable_core.record import check_id
from durable_core.stores.flows import sortable

KEY_BYTES: Final = 1024
# Servers that keep keys as paths allow 255 bytes between two slashes.
_SEGMENT_BYTES: Final = 200
_HEAD_BYTES: Final = 150
_CUT: Final = "!"  # percent-encoding never leaves one, so a cut id can't be taken for a whole one
_HIGHEST: Final = 9_999_999_999


class Keys:
    """The keys below one prefix.

    LIST sorts upwards, and we ask for the newest. So the numbers in keys count down from 9999999999, followed by the readable
    number. Raises `StoreError` for a prefix that is too long, or has a segment that clients and servers rewrite.
    """

    def __init__(self, prefix: str) -> None:
        segments = [segment for segment in prefix.split("/") if segment]
        if any(segment in (".", "..") or not segment.isprintable() for segment in segments):
            raise StoreError(f"prefix {prefix!r} has a segment that is '.', '..' or not printable; choose another name")
        root = "".join(f"{segment}/" for segment in segments)
        room = KEY_BYTES - 2 * (_SEGMENT_BYTES + 1) - len("snapshots/") - len("9999999999.r9999999999.json")
        if len(root.encode()) > room:
            raise StoreError(f"prefix {prefix!r} has {len(root.encode())} bytes; at most {room} leave room for the ids in a key")
        self.root: Final = root
        self.probe: Final = f"{root}probe.json"

    def run(self, run_id: str) -> str:
        """Return the prefix of the keys of the run's entries. No other keys have it."""
        return f"{self.root}runs/{segment(run_id)}/"

    def step(self, run_id: str, step_id: str) -> str:
        return f"{self.run(run_id)}{segment(step_id)}/"

    def entry(self, run_id: str, step_id: str, revision: int) -> str:
        if revision > _HIGHEST:
            raise StoreError(f"revision {revision} of step {step_id!r} is out of range; keys have room up to {_HIGHEST}")
        return f"{self.step(run_id, step_id)}{_HIGHEST - revision:010d}.r{revision}.json"

    def snapshot(self, run_id: str) -> str:
        return f"{self.root}snapshots/{segment(run_id)}.jsonl"

    def leases(self, run_id: str) -> str:
        return f"{self.root}locks/{segment(run_id)}/"

    def lease(self, run_id: str, number: int) -> str:
        return f"{self.leases(run_id)}{_HIGHEST - number:010d}.n{number}.json"

    def marks(self, run_id: str) -> str:
        return f"{self.root}open/{segment(run_id)}/"

    def mark(self, run_id: str, revision: int, began: str, token: str) -> str:
        return f"{self.marks(run_id)}{revision:010d}.{began}.{token}"

    def marked(self, prefix: str) -> str:
        """Return a prefix of the marks of all runs that start with `prefix`. Other marks may have it, too."""
        return f"{self.root}open/{_encoded(prefix)[:_HEAD_BYTES]}"

    def wakeups(self, flow: str) -> str:
        """Return the prefix of the keys of the flow's wake-ups. No other keys have it."""
        return f"{self.root}wakeups/{segment(flow)}/"

    def wakeup(self, flow: str, name: str) -> str:
        return f"{self.wakeups(flow)}{name}"

    def folder(self, name: str) -> str:
        """Return the folder of the run that has its marks in a folder of this name."""
        return f"{self.root}runs/{name}/"

    def runs(self, prefix: str) -> str:
        """Return a prefix of the folders of all runs that start with `prefix`. Other folders may have it, too."""
        return f"{self.root}runs/{_encoded(prefix)[:_HEAD_BYTES]}"

    def run_id(self, folder: str) -> str | None:
        """Return the id of the run in `folder`. None if it was cut: then only the entries have it.

        Raises `ValueError` for a folder that does not belong to a run.
        """
        name = folder.removeprefix(f"{self.root}runs/").removesuffix("/")
        if is_cut(name):
            return None
        id_ = unquote(name, errors="strict")
        check_id("run_id", id_)
        if segment(id_) != name:
            raise ValueError(f"the folder of run {id_!r} is {segment(id_)!r}")
        return id_


def number(key: str) -> int:
    """Return the number that `key` ends in, such as 7 for `…/9999999992.n7.json`."""
    digits = key.rpartition("/")[2].partition(".")[0]
    if not (digits.isascii() and digits.isdecimal()):
        raise StoreError(
            f"the object {key!r} is in a folder of the store, which did not write it: move it elsewhere, or delete it"
        )
    return _HIGHEST - int(digits)


def wakeup_name(run_id: str, at: datetime) -> str:
    """Return a new unique name that sorts by time."""
    return f"{sortable(at)}.{os.urandom(4).hex()}.{segment(run_id)}"


def is_cut(name: str) -> bool:
    """Return True if `name` is the beginning of an id and a hash."""
    return _CUT in name


def segment(id_: str) -> str:
    encoded = _encoded(id_)
    if len(encoded) <= _SEGMENT_BYTES:
        return encoded
    digest = hashlib.sha256(id_.encode()).hexdigest()[:40]
    return f"{encoded[:_HEAD_BYTES]}{_CUT}{digest}"


def _encoded(id_: str) -> str:
    """Percent-encode an id. If `a` is a prefix of `b`, the encoding of `a` is a prefix of the encoding of `b`."""
    encoded = quote(id_, safe="").replace("~", "%7E")
    # HTTP clients and proxies rewrite the segments `.` and `..`.
    return f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded
