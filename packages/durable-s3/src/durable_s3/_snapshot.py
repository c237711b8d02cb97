"""Many entries in one object, so that reading a long run again doesn't cost a request an entry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from ._bucket import Object
from ._entry import Entry

SMALLEST: Final = 100
"""A run with fewer entries has no snapshot, and one is written again when as many are not in it."""
LARGEST: Final = 256 * 1024 * 1024
_FORMAT: Final = 1


class _Header(msgspec.Struct):
    v: int
    run_id: str
    entries: int
    sha256: str


_header: Final = msgspec.json.Decoder(_Header).decode
_line: Final = msgspec.json.Decoder(tuple[str, str, msgspec.Raw]).decode


def encode(run_id: str, folder: str, entries: Iterable[Entry]) -> tuple[bytes, int]:
    """Return the snapshot of as many of the first `entries` as it may hold, and how many those are."""
    lines: list[bytes] = []
    size = 0
    for entry in entries:
        place = msgspec.json.encode((entry.key.removeprefix(folder), entry.etag))
        body = entry.body if b"\n" not in entry.body else msgspec.json.format(entry.body, indent=-1)
        line = b"%b,%b]\n" % (place[:-1], body)
        size += len(line)
        if size > LARGEST:
            break
        lines.append(line)
    rest = b"".join(lines)
    header = _Header(_FORMAT, run_id, len(lines), hashlib.sha256(rest).hexdigest())
    return msgspec.json.encode(header) + b"\n" + rest, len(lines)


def decode(data: bytes, run_id: str, folder: str, listed: Sequence[Object]) -> Mapping[str, Entry]:
    """Return the entries, by key, that stand in the snapshot and are listed with the same ETag; none if it is damaged."""
    first, _, rest = data.partition(b"\n")
    try:
        header = _header(first)
        if header.v != _FORMAT or header.run_id != run_id or hashlib.sha256(rest).hexdigest() != header.sha256:
            return {}
        etags = {object_.key: object_.etag for object_ in listed}
        found: dict[str, Entry] = {}
        for line in rest.split(b"\n")[:-1]:
            name, etag, body = _line(line)
            key = folder + name
            if etags.get(key) == etag:
                found[key] = Entry(key, etag, bytes(body))
    except msgspec.DecodeError:
        return {}
    return found
