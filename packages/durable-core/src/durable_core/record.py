"""One entry of a run's log, and its only wire form."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar, get_args, overload

import msgspec
from msgspec.structs import asdict, astuple, force_setattr

from ._system.ids import check_id as check_id  # stores use it too
from ._system.ids import new_id
from ._system.roots import CorruptLog
from ._system.text import UNSAFE, class_name, clip, safe
from ._values.returns import codec_for

T = TypeVar("T")

Status = Literal["success", "failure", "started", "waiting", "reopened"]
Kind = Literal["step", "sleep", "approval", "event", "flow", "first", "map", "published"]

FORMAT: Final = 1
_KNOWN: Final = {"status": get_args(Status), "kind": get_args(Kind)}
_ERROR_BYTES: Final = 16_000
_DATA_BYTES: Final = 4_000
_ExceptionType = type[BaseException]  # in StepError the field `type` hides the builtin


class StepError(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The recorded form of an exception: text and JSON only, so that reading a log never imports or runs anything.

    Lone surrogates and control characters other than newline and tab are escaped, so that an error can't control a terminal.
    """

    type: str
    """The name of the class, with its module unless it is a builtin: `TimeoutError`, `stripe.error.CardError`.

    The module `__main__` is replaced by the name under which other modules import it.
    """
    message: str = ""
    traceback: str = ""
    bases: tuple[str, ...] = ()
    """The names of the classes from which it derives, nearest first."""
    data: Any = None
    """JSON that the exception offers as the attribute or property `__durable_data__`; None if none or over 4 kB."""

    def __post_init__(self) -> None:
        for field in ("type", "message", "traceback"):
            if UNSAFE.search(text := getattr(self, field)):
                force_setattr(self, field, safe(text))
        if any(map(UNSAFE.search, self.bases)):
            force_setattr(self, "bases", tuple(map(safe, self.bases)))

    @classmethod
    def from_exception(cls, error: BaseException) -> StepError:
        """Describe `error` in at most 16 kB of UTF-8. A long traceback keeps its end."""
        names = [class_name(base) for base in type(error).__mro__[:-1]]
        try:
            message = str(error)
        except Exception as unprintable:
            message = f"<{class_name(type(error))} whose message raised {class_name(type(unprintable))}>"
        name = clip(names[0], 500)
        bases = tuple(clip(base, 200) for base in names[1:16])
        text = clip(message, 4_000)
        data, size = _data_of(error)
        used = size + sum(len(part.encode()) for part in (name, text, *bases))
        try:
            lines = "".join(traceback.format_exception(error))
        except Exception as unprintable:
            lines = f"<the traceback can't be shown: {class_name(type(unprintable))}>"
        return cls(name, text, clip(lines, _ERROR_BYTES - used, end=True), bases, data)

    def matches(self, *types: _ExceptionType) -> bool:
        """Return True if the exception was an instance of one of `types`, compared by name."""
        recorded = {self.type, *self.bases}
        return any(safe(class_name(type_)) in recorded for type_ in types)

    def __str__(self) -> str:
        name = self.type.rpartition(".")[2]
        return f"{name}: {self.message}" if self.message else name


class StepRecord(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One entry of a step's history: the step, its revision, its outcome, and when.

    Raises `ValueError` for an id that is empty, longer than 512 bytes of UTF-8, or contains control characters or lone
    surrogates; for an unknown status or kind; and for a datetime without a time zone or outside the years 1 to 9999.
    """

    run_id: str
    step_id: str
    revision: int = 0
    """0 for the step's first entry, then 1, 2, …. A store accepts each `(run_id, step_id, revision)` once."""
    status: Status = "success"
    kind: Kind = "step"
    name: str = ""
    """The name that people read; by default the step id. It is escaped like an error's text."""
    result: bytes | None = None
    """The value as JSON on one line, or None if no value was recorded. `value()` decodes it."""
    error: StepError | None = None
    note: Any = None
    """JSON with more about the entry, such as who acted and why."""
    until: datetime | None = None
    """A wake-up time or a deadline."""
    attempt: int = 1
    """The attempt that produced this entry, from 1."""
    started_at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    id: str = msgspec.field(default_factory=new_id)
    """Random and unique to this append, so that a writer can tell whether it won the slot."""
    fingerprint: str | None = None
    """A short hash of the arguments that the step was called with."""

    def __post_init__(self) -> None:
        for field in ("run_id", "step_id"):
            if (plain := check_id(field, given := getattr(self, field))) is not given:
                force_setattr(self, field, plain)
        name = self.name
        if name is not self.step_id and not (type(name) is str and name and name.isascii() and name.isprintable()):
            if not isinstance(name, str):
                raise TypeError(f"name must be a str, not {name!r}")
            force_setattr(self, "name", safe(name) if name else self.step_id)
        if self.revision < 0 or self.attempt < 1:
            raise ValueError(f"revision must be at least 0 and attempt at least 1, not {self.revision} and {self.attempt}")
        for field, known in _KNOWN.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field} {getattr(self, field)!r} is not one of {', '.join(known)}")
        if self.result is not None and (line := _on_one_line(self.result)) is not self.result:
            force_setattr(self, "result", line)
        if self.started_at.tzinfo is not UTC:
            force_setattr(self, "started_at", _utc("started_at", self.started_at))
        if self.ended_at.tzinfo is not UTC:
            force_setattr(self, "ended_at", _utc("ended_at", self.ended_at))
        if self.until is not None and self.until.tzinfo is not UTC:
            force_setattr(self, "until", _utc("until", self.until))

    @property
    def duration(self) -> timedelta:
        """The time from `started_at` to `ended_at`."""
        return self.ended_at - self.started_at

    @property
    def notes(self) -> Mapping[str, Any]:
        """The members of `note`; empty if `note` is not a JSON object."""
        return self.note if isinstance(self.note, dict) else {}

    @property
    def answered(self) -> bool:
        """True if the step was called while its flow handled an exception, according to its note."""
        return "answered" in self.notes

    @overload
    def value(self, type_: type[T]) -> T: ...
    @overload
    def value(self, type_: Any = Any) -> Any: ...
    def value(self, type_: Any = Any) -> Any:
        """Decode the recorded value as `type_`, or as plain JSON; None if no value was recorded.

        Raises `TypeError` for a type that can't be decoded, and `msgspec.ValidationError` if the value is not of that type.
        """
        return None if self.result is None else codec_for(type_).decode(self.result)

    def to_json(self) -> bytes:
        """Encode the record in its only wire form: JSON on a single line, with a format version."""
        fields: list[Any] = [FORMAT, *astuple(self)]
        fields[_RESULT] = msgspec.UNSET if self.result is None else msgspec.Raw(self.result)
        return _encode(_Wire(*fields))

    @classmethod
    def from_json(cls, line: bytes | bytearray | memoryview | str, *, where: str = "") -> StepRecord:
        """Decode what `to_json` wrote. Unknown keys are ignored.

        `where` names the place of `line` in errors. Raises `CorruptLog` if `line` is not a record, or one that a newer version
        wrote, with another format or an unknown status or kind.
        """
        try:
            fields = asdict(_decode(line))
            if fields.pop("v") > FORMAT:
                raise ValueError("written by a newer version")
            if fields["started_at"] is None or fields["ended_at"] is None or not fields["id"]:
                raise ValueError("it lacks started_at, ended_at or id")  # which would be others each time it is read
            fields["result"] = None if fields["result"] is msgspec.UNSET else bytes(fields["result"])
            return cls(**fields)
        except _UNREADABLE as error:
            raise _refusal(line, error, f"{where}: " if where else "") from error


class _Wire(msgspec.Struct, gc=False, omit_defaults=True):
    """A record as it is written, field by field. `result` is embedded as JSON, not as a string that contains JSON."""

    v: int
    run_id: str
    step_id: str
    revision: int
    status: str
    kind: str
    name: str
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: StepError | None = None
    note: Any = None
    until: datetime | None = None
    attempt: int = 1
    started_at: datetime | None = None
    ended_at: datetime | None = None
    id: str = ""
    fingerprint: str | None = None


_RESULT: Final = _Wire.__struct_fields__.index("result")
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Wire).decode
_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode
# Besides what msgspec says of bad JSON: text that is no UTF-8, nesting without end, a year that UTC doesn't have.
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)


def _on_one_line(result: bytes) -> bytes:
    """Return JSON on one line, without surrounding space, which the wire form drops."""
    if type(result) is not bytes:
        raise TypeError(f"result must be JSON as bytes, not {result!r}")
    try:
        bare = len(_skip(result))
        if not result.isascii():
            result.decode()
    except _UNREADABLE as error:
        raise ValueError(f"result must be JSON, not {result[:80]!r}: {error}") from error
    return msgspec.json.format(result, indent=-1) if bare != len(result) or 10 in result or 13 in result else result


def _utc(field: str, moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{field} {moment!r} has no time zone; give an aware datetime, such as datetime.now(UTC)")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{field} {moment.isoformat()} is not between the years 1 and 9999 in UTC") from error


class _Version(msgspec.Struct):
    """The fields of a line that tell which version wrote it."""

    v: int = 0
    status: str = "success"
    kind: str = "step"


def _refusal(line: bytes | bytearray | memoryview | str, error: Exception, place: str) -> CorruptLog:
    with suppress(*_UNREADABLE):
        wrote = msgspec.json.decode(line, type=_Version)
        if wrote.v > FORMAT:
            reason = f"a record of format {wrote.v}; this durable-core reads up to {FORMAT}"
            return CorruptLog(f"{place}{reason}: upgrade durable-core")
        for field, known in _KNOWN.items():
            if (value := getattr(wrote, field)) not in known:
                return CorruptLog(f"{place}{field} {value[:80]!r} was written by a newer version: upgrade durable-core")
    text = line if isinstance(line, str) else bytes(line[:200]).decode(errors="replace")
    return CorruptLog(f"{place}not a step record ({error}): {text[:200]!r}")


def _data_of(error: BaseException) -> tuple[Any, int]:
    """Return the JSON that the exception offers, and its size; None if it would not come back equal."""
    with suppress(Exception):  # whatever a property raises: the failure itself is what has to be recorded
        offered = getattr(error, "__durable_data__", None)
        encoded = msgspec.json.encode(offered)
        data = msgspec.json.decode(encoded)
        if len(encoded) <= _DATA_BYTES and data == offered:
            return data, len(encoded)
    return None, 0
