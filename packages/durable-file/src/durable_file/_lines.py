"""One line of a log: JSON whose first member is a CRC-32 over the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from durable_core import CorruptLog, StepRecord, StoreError

FORMAT: Final = 1
_HEAD: Final = len('{"crc":"xxxxxxxx",')
_CLEARED: Final = b'"clear":'

Slot = str | tuple[str, int]
"""A step's id for its first entry, which most steps have only, and the id with the revision for any other."""


class LineKey(msgspec.Struct, gc=False):
    """What the index needs to know of a line: the slot that it fills, or the run that it clears."""

    v: int
    run_id: str = ""
    step_id: str = ""
    revision: int = 0
    clear: str | None = None


_key: Final = msgspec.json.Decoder(LineKey).decode


def seal(body: bytes) -> bytes:
    """Put the checksum in front of a JSON object."""
    rest = body[1:]
    return b'{"crc":"%08x",%b' % (crc32(rest), rest)


def record_line(record: StepRecord) -> bytes:
    """Encode the record as a line, without its end."""
    return seal(record.to_json())


def clear_line(run_id: str) -> bytes:
    """Make the line which says that all entries of the run before it are gone."""
    # Its id tells it from one before it in a log that was removed and written anew.
    return seal(msgspec.json.encode({"clear": run_id, "v": FORMAT, "id": os.urandom(12).hex()}))


def is_clear(line: bytes) -> bool:
    """Tell, of a checked line and without decoding it, whether it clears a run."""
    return line.startswith(_CLEARED, _HEAD)


def slot_of(step_id: str, revision: int) -> Slot:
    return (step_id, revision) if revision else step_id


def read_key(line: bytes, path: Path, number: int) -> LineKey:
    """Check a line and return its key. Raises `CorruptLog` for a line that isn't whole, naming the file and the line."""
    rest = line[_HEAD:]
    if line[:_HEAD] != b'{"crc":"%08x",' % crc32(rest):
        shown = line[:80].decode(errors="backslashreplace")
        raise CorruptLog(
            f"{path}, line {number}: the checksum doesn't match: {shown!r}; the log was damaged or edited."
            " Nothing was skipped or changed: restore the line from a copy. Or move the log away, in full knowledge of what it"
            " holds: its runs then begin anew, and every step of theirs runs again"
        )
    try:
        key = _key(line)
    except msgspec.DecodeError as error:
        raise CorruptLog(f"{path}, line {number}: not an entry of a log ({error}), although its checksum matches") from error
    if key.v > FORMAT:
        raise StoreError(f"{path}, line {number}: an entry of format {key.v}; this durable-file reads up to {FORMAT}: upgrade it")
    return key
