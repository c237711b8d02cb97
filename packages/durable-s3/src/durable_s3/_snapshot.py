"""Snapshots: many entries in one object, so that reading a long run doesn't take a request for each entry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from ._entry import UNREADABLE, Entry, Place, place_of

_FORMAT: Final = 1


class _Header(msgspec.Struct):
    v: int
    run_id: str
    entries: int
    sha256: str


_header: Final = msgspec.json.Decoder(_Header).decode
_line: Final = msgspec.json.Decoder(tuple[str, str, msgspec.Raw]).decode


def encode(run_id: str, folder: str, entries: Iterable[Entry], largest: int) -> tuple[bytes, int]:
    """Return a snapshot of the first entries, at most `largest` bytes, and how many entries it has."""
    lines: list[bytes] = [b""]
    digest = hashlib.sha256()
    size = 0
    for entry in entries:
        place = msgspec.json.encode((entry.key.removeprefix(folder), entry.etag))
        body = entry.body if b"\n" not in entry.body else msgspec.json.format(entry.body, indent=-1)
        line = b"%b,%b]\n" % (place[:-1], body)
        size += len(line)
        if size > largest:
            break
        digest.update(line)
        lines.append(line)
    count = len(lines) - 1
    lines[0] = msgspec.json.encode(_Header(_FORMAT, run_id, count, digest.hexdigest())) + b"\n"
    return b"".join(lines), count


def fill(chunks: Iterable[bytes], run_id: str, folder: str, listed: Mapping[str, Entry], *, bodies: bool = True) -> int:
    """Fill in the places, and with `bodies` the bodies, of listed entries with the same ETag. Return how many.

    Returns 0 for a damaged snapshot, and fills in nothing.
    """
    lines = _lines(chunks)
    found: list[tuple[Entry, bytes, Place]] = []
    try:
        header = _header(next(lines, b""))
        if header.v != _FORMAT or header.run_id != run_id:
            return 0
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line)
            digest.update(b"\n")
            name, etag, body = _line(line)
            entry = listed.get(folder + name)
            if entry is not None and entry.etag == etag:
                found.append((entry, bytes(body) if bodies else b"", place_of(body)))
    except UNREADABLE:
        return 0
    if digest.hexdigest() != header.sha256:
        return 0
    for entry, content, place in found:
        entry.body, entry.place = content, place
    return len(found)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest  # a line without an end is damage: the checksum will differ
