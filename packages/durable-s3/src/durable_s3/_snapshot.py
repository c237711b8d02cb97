"""Many entries in one object, so that reading a long run again doesn't cost a request an entry."""

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
    """Return a snapshot of the first entries, of `largest` bytes at most, and how many entries it holds."""
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
    """Fill in the places and the `bodies` of listed entries from a snapshot, if the ETags are equal; return how many.

    A damaged snapshot fills in none.
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
        yield rest  # damage, as the checksum will tell
