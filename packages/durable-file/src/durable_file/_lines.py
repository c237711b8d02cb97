"""One line of a log: JSON with a CRC-32 over the rest as its first member."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final
from zlib import crc32

import msgspec

from durable_core import CorruptLog, StepRecord, StoreError

FORMAT: Final = 1
_HEAD: Final = len('{"crc":"xxxxxxxx",')
_BOM: Final = b"\xef\xbb\xbf"
_ADVICE: Final = (
    "the log was damaged or edited. Nothing was skipped or changed: restore the line from a copy. Or move the log away, in full"
    " knowledge of what it holds: its runs then begin anew, and every step of theirs runs again"
)
_CLEARED: Final = b'"clear":'

Slot = str | tuple[str, int]
"""The step's id for its first entry, the id and the revision for a later one. Most steps have only the first."""


class LineKey(msgspec.Struct, gc=False):
    """The part of a line that the index needs: the slot that it fills, or the run that it clears."""

    v: int
    run_id: str = ""
    step_id: str = ""
    revision: Annotated[int, msgspec.Meta(ge=0)] = 0
    clear: str | None = None


_key: Final = msgspec.json.Decoder(LineKey).decode


def seal(body: bytes) -> bytes:
    """Put the checksum in front of a JSON object."""
    rest = body[1:]
    return b'{"crc":"%08x",%b' % (crc32(rest), rest)


def record_line(record: StepRecord) -> bytes:
    """Encode the record as a line, without a line end."""
    return seal(record.to_json())


def clear_line(run_id: str) -> bytes:
    """Make a line that removes all entries of the run before it."""
    # The id makes it differ from an earlier such line, in a log that was removed and written again.
    return seal(msgspec.json.encode({"clear": run_id, "v": FORMAT, "id": os.urandom(12).hex()}))


def is_clear(line: bytes) -> bool:
    """Return True if a checked line clears a run. Does not decode it."""
    return line.startswith(_CLEARED, _HEAD)


def checksum_of(line: bytes) -> bytes:
    """Return the line's checksum. Two different lines share one only by chance."""
    return line[:_HEAD]


def slot_of(step_id: str, revision: int) -> Slot:
    return (step_id, revision) if revision else step_id


def read_key(line: bytes, path: Path, number: int) -> LineKey:
    """Check a line and return its key. Raises `CorruptLog` for a damaged line, or one of a newer version."""
    where = f"{path}, line {number}"
    if not _is_whole(line):
        raise CorruptLog(f"{where}: {_damage(line, path)}")
    try:
        key = _key(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CorruptLog(f"{where}: not an entry of a log ({error}), although its checksum matches") from error
    if key.v > FORMAT:
        raise CorruptLog(f"{where}: an entry of format {key.v}; this durable-file reads up to {FORMAT}: upgrade it")
    return key


def record_of(path: Path, line: bytes) -> StepRecord:
    """Decode a line of the log at `path`. If it is not a record, the error names the file and the line."""
    try:
        return StepRecord.from_json(line)
    except StoreError:
        number = "?"
        with suppress(OSError), path.open("rb") as file:
            number = next((str(number) for number, found in enumerate(file, 1) if found.startswith(line)), number)
        return StepRecord.from_json(line, where=f"{path}, line {number}")


def check_tail(tail: bytes, path: Path) -> None:
    """Raise `CorruptLog` if `tail`, the bytes after the last line end, is a whole line with a changed end.

    An append that never returned does no damage: it leaves part of a line, or NUL bytes where nothing was written.
    """
    if not tail.endswith(b"\0") and _is_whole(tail[:-1]):
        raise CorruptLog(f"{path}, last line: its end was changed to {tail[-1:]!r}; {_ADVICE}")


def _is_whole(line: bytes) -> bool:
    return line[:_HEAD] == b'{"crc":"%08x",' % crc32(line[_HEAD:])


def _damage(line: bytes, path: Path) -> str:
    bare = line.removeprefix(_BOM).removesuffix(b"\r")
    if _is_whole(bare):
        changes = ["the line ends were changed to CR LF"] * line.endswith(b"\r")
        changes += ["a byte order mark was put in front"] * line.startswith(_BOM)
        return (
            f"only {' and '.join(changes)}, as an editor or git does; nothing is lost."
            f" `dos2unix {path}` undoes that; in git, mark such files with `-text`"
        )
    return f"the checksum doesn't match: {line[:80].decode(errors='backslashreplace')!r}; {_ADVICE}"
