"""One entry of a log: its ids, its checks, its one wire form, and what it keeps of an exception."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import durable_core
from durable_core import MemoryStore, errors
from durable_core.errors import CorruptLog, LockLost, ResultNotRecorded, RunBusy, StepFailed, StoreError
from durable_core.record import FORMAT, StepError, StepRecord
from durable_core.testing import HOSTILE_IDS

MOMENT = datetime(2026, 3, 29, 1, 59, 59, 999_999, tzinfo=UTC)


def record(**fields: Any) -> StepRecord:
    return StepRecord(**{"run_id": "run", "step_id": "step", **fields})


FULL = record(
    revision=3,
    status="failure",
    kind="approval",
    name="Charge the card",
    result=b'{"b":1.0,"a":1e400}',
    error=StepError(type="x.Y", message="m", traceback="t\n", bases=("x.Z", "Exception")),
    note={"by": "alice", "votes": [1, None]},
    until=MOMENT,
    attempt=2,
    started_at=MOMENT,
    ended_at=MOMENT + timedelta(microseconds=1),
    id="abc",
    fingerprint="f00",
)


class TestIds:
    @pytest.mark.parametrize("field", ["run_id", "step_id"])
    @pytest.mark.parametrize(
        ("value", "complaint"),
        [
            ("", "has 0 bytes"),
            ("x" * 513, "has 513 bytes"),
            ("é" * 257, "has 514 bytes"),
            ("a\nb", r"'a\\nb' contains a control character"),
            ("\0", "contains a control character"),
            ("\x7f", "contains a control character"),
            ("\x85", "contains a control character"),
            ("\ud800", r"'\\ud800' contains a lone surrogate"),
        ],
    )
    def test_an_illegal_id_is_shown_and_the_rule_told(self, field: str, value: str, complaint: str) -> None:
        """An id is 1 to 512 bytes of UTF-8 without control characters."""
        with pytest.raises(ValueError, match=rf"{field} .*{complaint}; expected 1 to 512 bytes of UTF-8"):
            record(**{field: value})

    @pytest.mark.parametrize("value", [None, 7, b"run"])
    def test_an_id_that_is_no_text(self, value: object) -> None:
        """Anything but a str is a TypeError."""
        with pytest.raises(TypeError, match="run_id must be a str, not"):
            record(run_id=value)

    @pytest.mark.parametrize("value", [*HOSTILE_IDS, "x" * 512])
    def test_hostile_ids_are_legal(self, value: str) -> None:
        """Whatever is within the rule is taken, and survives the wire."""
        made = record(run_id=value, step_id=value)
        assert StepRecord.from_json(made.to_json()) == made

    def test_ids_are_unique(self) -> None:
        """Each record has an id of its own."""
        assert len({record().id for _ in range(1000)}) == 1000


class TestChecks:
    @pytest.mark.parametrize("field", ["started_at", "ended_at", "until"])
    def test_a_datetime_without_a_zone(self, field: str) -> None:
        """A naive datetime is refused."""
        with pytest.raises(ValueError, match=rf"{field} .* has no time zone"):
            record(**{field: MOMENT.replace(tzinfo=None)})

    def test_datetimes_become_utc(self) -> None:
        """The same moment is kept in UTC, whatever zone it came in."""
        made = record(until=MOMENT.astimezone(timezone(timedelta(hours=-3, seconds=7))))
        assert made.until == MOMENT
        assert made.until is not None
        assert made.until.tzinfo is UTC

    @pytest.mark.parametrize(
        "fields", [{"status": "done"}, {"kind": "task"}, {"revision": -1}, {"attempt": 0}, {"result": b"{"}, {"result": b""}]
    )
    def test_a_bad_value_is_refused(self, fields: dict[str, Any]) -> None:
        """An unknown status or kind, a negative count, a result that is no JSON."""
        with pytest.raises(ValueError, match=next(iter(fields))):
            record(**fields)

    def test_a_result_that_is_no_utf8(self) -> None:
        """JSON is UTF-8; bytes that aren't would make the whole line unreadable."""
        with pytest.raises(ValueError, match="result must be JSON"):
            record(result=b'"\xff"')

    def test_a_result_that_is_no_bytes(self) -> None:
        """A result is encoded before it gets here."""
        with pytest.raises(TypeError, match="result must be JSON as bytes"):
            record(result='"text"')

    @pytest.mark.parametrize("fields", [{"status": []}, {"kind": {}}, {"result": b"[" * 1_000_000 + b"]" * 1_000_000}])
    def test_a_value_that_cannot_be_looked_up_is_refused(self, fields: dict[str, Any]) -> None:
        """Whatever is given for a status, a kind or a result, the error is a ValueError that names the field."""
        with pytest.raises(ValueError, match=next(iter(fields))):
            record(**fields)

    def test_a_moment_outside_the_calendar(self) -> None:
        """A time that UTC has no year for is refused as any bad value is."""
        with pytest.raises(ValueError, match="started_at .* is not between the years 1 and 9999 in UTC"):
            record(started_at=datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))))

    @pytest.mark.parametrize("result", [b'{"a":\n1}', b'{"a":\r1}', b' {"a":1}', b'{"a":1}\r\n'])
    def test_a_result_on_several_lines_is_put_on_one(self, result: bytes) -> None:
        """White space that could end a line, or that the wire form drops, is dropped at once."""
        assert record(result=result).result == b'{"a":1}'

    def test_a_result_on_one_line_keeps_its_spelling(self) -> None:
        """Spaces inside, number formats and double keys are the writer's."""
        spelled = b'{ "a" : 1E+2, "a":1.0 }'
        made = record(result=spelled)
        assert made.result == spelled
        assert StepRecord.from_json(made.to_json()).result == spelled

    def test_the_name_is_the_step_id_unless_given(self) -> None:
        """A name is never empty, and holds nothing that a text column refuses."""
        assert record().name == "step"
        assert record(name="Für\0 \ud800 \n").name == "Für\\x00 \\ud800 \n"

    def test_a_record_is_frozen(self) -> None:
        """What was appended doesn't change."""
        with pytest.raises(AttributeError):
            record().status = "failure"  # type: ignore[misc]


class TestWire:
    def test_every_field_survives(self) -> None:
        """What `to_json` writes, `from_json` reads; a record of nothing but ids, too."""
        for made in (FULL, record(), record(result=b"null")):
            line = made.to_json()
            assert StepRecord.from_json(line) == made
            assert StepRecord.from_json(line.decode()) == made
            assert StepRecord.from_json(memoryview(line)).to_json() == line

    def test_none_recorded_is_not_null_recorded(self) -> None:
        """A step without a value and a step whose value is None are told apart."""
        assert StepRecord.from_json(record().to_json()).result is None
        assert StepRecord.from_json(record(result=b"null").to_json()).result == b"null"

    def test_the_wire_form_is_pinned(self) -> None:
        """Logs outlive releases: this line may gain keys, and must always be read."""
        line = FULL.to_json()
        assert line == (
            b'{"v":1,"run_id":"run","step_id":"step","revision":3,"status":"failure","kind":"approval","name":"Charge the card",'
            b'"result":{"b":1.0,"a":1e400},"error":{"type":"x.Y","message":"m","traceback":"t\\n","bases":["x.Z","Exception"]},'
            b'"note":{"by":"alice","votes":[1,null]},"until":"2026-03-29T01:59:59.999999Z","attempt":2,'
            b'"started_at":"2026-03-29T01:59:59.999999Z","ended_at":"2026-03-29T02:00:00Z","id":"abc","fingerprint":"f00"}'
        )

    @given(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
            max_leaves=10,
        ),
    )
    def test_a_line_is_a_line(self, name: str, note: Any) -> None:
        """No text or note puts a line break into the line, and all of it comes back."""
        made = record(name=name, note=note, result=json.dumps(note).encode())
        line = made.to_json()
        assert b"\n" not in line
        assert b"\r" not in line
        assert StepRecord.from_json(line) == made

    def test_unknown_keys_are_ignored(self) -> None:
        """A later release may add fields."""
        line = FULL.to_json()[:-1] + b',"later":{"x":[1]}}'
        assert StepRecord.from_json(line) == FULL

    def test_a_newer_format_says_what_to_upgrade(self) -> None:
        """A format that this release can't read is told as such, whatever else it holds."""
        with pytest.raises(StoreError, match=rf"format {FORMAT + 1}.*upgrade durable-core"):
            StepRecord.from_json(json.dumps({"v": FORMAT + 1, "what": "ever"}).encode())

    def test_a_newer_format_of_the_same_shape(self) -> None:
        """A newer format may mean something else by the same keys, so it is refused too."""
        with pytest.raises(StoreError, match="upgrade durable-core"):
            StepRecord.from_json(FULL.to_json().replace(b'"v":1', b'"v":2'))

    @pytest.mark.parametrize(
        "line",
        [
            *(b"", b"\xff", b"null", b"{", b"[]", b"{}", b'{"v":1}', b'{"v":"1"}'),
            FULL.to_json().replace(b'"revision":3', b'"revision":-3'),
            FULL.to_json().replace(b'"run_id":"run"', b'"run_id":""'),
            FULL.to_json().replace(b"59.999999Z", b"59.999999"),
        ],
    )
    def test_what_is_no_record_is_shown(self, line: bytes) -> None:
        """A line that isn't a record is a StoreError from the first error, with the beginning of the line."""
        with pytest.raises(StoreError, match="not a step record") as refused:
            StepRecord.from_json(line)
        assert refused.value.__cause__ is not None
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize(
        ("good", "bad"),
        [
            (b'"result":{"b":1.0,"a":1e400}', b'"result":' + b"[" * 1_000_000 + b"]" * 1_000_000),
            (b'"note":{"by":"alice","votes":[1,null]}', b'"note":' + b"[" * 1_000_000 + b"]" * 1_000_000),
            (b'"started_at":"2026-03-29T01:59:59.999999Z"', b'"started_at":"9999-12-31T23:59:59-12:00"'),
            (b'"until":"2026-03-29T01:59:59.999999Z"', b'"until":"0001-01-01T00:00:00+12:00"'),
            (b'"kind":"approval"', b'"kind":["approval"]'),
            (b'"status":"failure"', b'"status":{}'),
            (b'"name":"Charge the card"', b'"name":7'),
            (b'"attempt":2', b'"attempt":1e999'),
            (b'"message":"m"', b'"message":"\xed\xa0\x80"'),
        ],
        ids=["deep result", "deep note", "after 9999", "before 1", "kind", "status", "name", "attempt", "surrogate"],
    )
    def test_whatever_stands_in_a_line_is_a_damaged_entry(self, good: bytes, bad: bytes) -> None:
        """No line is answered with a bare error of decoding, recursion or arithmetic; the place is named where it is known."""
        line = FULL.to_json()
        assert good in line
        with pytest.raises(CorruptLog, match=r"^runs\.jsonl, line 7: not a step record \(") as refused:
            StepRecord.from_json(line.replace(good, bad), where="runs.jsonl, line 7")
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize(
        ("known", "new", "named"),
        [(b'"failure"', b'"paused"', "status 'paused'"), (b'"approval"', b'"signal"', "kind 'signal'")],
    )
    def test_an_unknown_kind_or_status_is_of_a_newer_version(self, known: bytes, new: bytes, named: str) -> None:
        """It is told as a log that can't be read: the message names it and says what to upgrade."""
        with pytest.raises(CorruptLog, match=rf"^here: {named} .*: upgrade durable-core$"):
            StepRecord.from_json(FULL.to_json().replace(known, new), where="here")

    @pytest.mark.parametrize("kind", ["first", "map", "published"])
    def test_the_kinds_that_come_next_are_read(self, kind: str) -> None:
        """A log that a newer version wrote with these can be read."""
        assert StepRecord.from_json(FULL.to_json().replace(b'"approval"', f'"{kind}"'.encode())).kind == kind

    @pytest.mark.parametrize("note", [None, [1], 7, "text", True])
    def test_a_note_of_another_shape_says_nothing(self, note: Any) -> None:
        """It comes back as it is, and has no members."""
        made = StepRecord.from_json(record(note=note).to_json())
        assert made.note == note
        assert made.notes == {}
        assert FULL.notes == {"by": "alice", "votes": [1, None]}

    def test_value_decodes(self) -> None:
        """`value` decodes as the type asked for, or as plain JSON."""
        made = record(result=b'{"b":[1]}')
        assert made.value() == {"b": [1]}
        assert made.value(dict[str, tuple[int]]) == {"b": (1,)}
        assert record().value(int) is None
        with pytest.raises(msgspec.ValidationError):
            made.value(int)

    def test_records_can_be_pickled(self) -> None:
        """Records go to worker processes and back."""
        assert pickle.loads(pickle.dumps(FULL)) == FULL


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class TestStepError:
    def test_it_keeps_type_message_traceback_and_bases(self) -> None:
        """An exception is described by text, its bases nearest first."""
        try:
            {}["missing"]
        except KeyError as error:
            kept = StepError.from_exception(error)
        assert kept.type == "KeyError"
        assert kept.message == "'missing'"
        assert kept.bases == ("LookupError", "Exception", "BaseException")
        assert '{}["missing"]' in kept.traceback
        assert str(kept) == "KeyError: 'missing'"

    def test_matches_asks_by_class(self) -> None:
        """`matches` is `isinstance` by recorded names, module included."""
        kept = StepError.from_exception(_Unprintable())
        assert kept.matches(_Unprintable)
        assert kept.matches(OSError, Exception)
        assert not kept.matches(OSError, RuntimeError)
        assert not kept.matches(type("_Unprintable", (Exception,), {"__module__": "elsewhere"}))
        assert not kept.matches()

    @pytest.mark.parametrize("size", [1_000, 100_000])
    @pytest.mark.parametrize("text", ["x", "é", "\U0001f4a3", "\0", "\ud800"])
    def test_it_takes_at_most_16_kb(self, text: str, size: int) -> None:
        """However long or odd an exception is, its description is 16 kB of UTF-8 at most, the traceback's end included."""
        odd = type(text * 300 if text.isprintable() else "Odd", (ValueError,), {})
        kept = StepError.from_exception(odd(text * size))
        parts = [kept.type, kept.message, kept.traceback, *kept.bases]
        assert sum(len(part.encode()) for part in parts) <= 16_000
        assert not any("\0" in part for part in parts)
        assert StepRecord.from_json(record(error=kept).to_json()).error == kept

    def test_nul_and_surrogates_are_escaped(self) -> None:
        """What databases refuse is written as an escape."""
        assert StepError.from_exception(ValueError("a\0b\ud800c")).message == "a\\x00b\\ud800c"

    @pytest.mark.parametrize("control", ["\x1b", "\r", "\x07", "\x7f", "\x9b", "\0"])
    def test_terminal_escapes_are_escaped(self, control: str) -> None:
        """A message, a class or a name that would move a terminal's cursor or colour its text is shown as text."""
        shown = f"a\\x{ord(control):02x}b\n\tc"
        odd = type(f"Odd{control.strip(chr(0))}", (ValueError,), {})
        kept = StepError.from_exception(odd(f"a{control}b\n\tc"))
        assert kept.message == shown
        assert control not in f"{kept.type}{kept.traceback}{kept.bases}"
        assert record(name=f"a{control}b\n\tc").name == shown
        assert StepError("T", f"a{control}b\n\tc").message == shown

    def test_an_old_log_with_raw_escapes_is_shown_escaped(self) -> None:
        """What an earlier version wrote is read, and shown as text."""
        line = record(name="N", error=StepError("T", "M", "B", ("S",))).to_json()
        for field in (b'"N"', b'"T"', b'"M"', b'"B"', b'"S"'):
            assert field in line
            line = line.replace(field, field[:2] + b'\\u001b[2J"')
        read = StepRecord.from_json(line)
        assert read.name == "N\\x1b[2J"
        assert read.error == StepError("T\\x1b[2J", "M\\x1b[2J", "B\\x1b[2J", ("S\\x1b[2J",))

    def test_it_says_the_class_without_its_path(self) -> None:
        """People read the class's own name; `type` keeps the whole."""
        assert str(StepError("stripe.error.CardError", "declined")) == "CardError: declined"
        assert str(StepError("stripe.error.CardError")) == "CardError"
        assert str(StepError("tests.test_pay.<locals>.Declined", "no")) == "Declined: no"

    @pytest.mark.parametrize("data", [{"code": "declined", "retry": [1, 2.5, None]}, "text", 7, False, [], "a\x1bb"])
    def test_what_an_exception_offers_is_kept(self, data: Any) -> None:
        """`__durable_data__`, an attribute or a property, comes back from the log as it was."""

        class ByAttribute(Exception):
            __durable_data__ = data

        class ByProperty(Exception):
            @property
            def __durable_data__(self) -> Any:
                return data

        for error in (ByAttribute(), ByProperty()):
            kept = StepError.from_exception(error)
            assert kept.data == data
            assert StepRecord.from_json(record(error=kept).to_json()).error == kept

    @pytest.mark.parametrize(
        "data",
        [object(), {1: 2}, {"a": {1, 2}}, (1, 2), float("nan"), "\ud800", "x" * 20_000, [[]] * 9_000, MOMENT, b"bytes"],
        ids=lambda data: type(data).__name__,
    )
    def test_what_would_not_come_back_is_left_out(self, data: Any) -> None:
        """Data that is no JSON, or too long, hides no failure and is not kept."""

        class Offers(Exception):
            __durable_data__ = data

        kept = StepError.from_exception(Offers("message"))
        assert (kept.message, kept.data) == ("message", None)

    def test_data_whose_reading_fails_is_left_out(self) -> None:
        """Whatever the property raises."""

        class Odd(Exception):
            @property
            def __durable_data__(self) -> Any:
                raise RuntimeError("no")

        kept = StepError.from_exception(Odd("message"))
        assert (kept.message, kept.data) == ("message", None)

    def test_data_counts_into_the_16_kb(self) -> None:
        """All of a description together has one limit."""

        class Offers(Exception):
            __durable_data__ = "x" * 3_000

        kept = StepError.from_exception(Offers("m" * 100_000))
        assert kept.data == "x" * 3_000
        assert len(msgspec.json.encode(kept)) <= 16_200

    def test_of_a_long_traceback_the_end_is_kept(self) -> None:
        """The end says what happened."""

        def fail(depth: int) -> None:
            if depth:
                return (fail, deeper)[depth % 2](depth - 1)
            raise ValueError("the bottom")

        def deeper(depth: int) -> None:
            fail(depth - 1) if depth else fail(0)

        with pytest.raises(ValueError, match="the bottom") as raised:
            fail(300)
        assert StepError.from_exception(raised.value).traceback.endswith("ValueError: the bottom\n")

    def test_an_exception_that_cannot_be_printed(self) -> None:
        """A failure to print an exception does not hide it."""
        kept = StepError.from_exception(_Unprintable())
        assert kept.type.endswith("._Unprintable")
        assert "whose message raised RuntimeError" in kept.message

    def test_an_exception_whose_notes_cannot_be_read(self) -> None:
        """A failure to format a traceback does not hide the exception."""

        class Odd(Exception):
            @property
            def __notes__(self) -> list[str]:
                raise RuntimeError("no")

        assert StepError.from_exception(Odd("message")).message == "message"

    def test_an_exception_group(self) -> None:
        """A group's traceback shows its members."""
        kept = StepError.from_exception(ExceptionGroup("both", [ValueError("one"), OSError("two")]))
        assert kept.matches(ExceptionGroup)
        assert "both (2 sub-exceptions)" in kept.message
        assert "ValueError: one" in kept.traceback
        assert "OSError: two" in kept.traceback

    def test_an_exception_that_is_its_own_cause(self) -> None:
        """Cycles end."""
        error = ValueError("round")
        error.__cause__ = error
        assert StepError.from_exception(error).message == "round"


CARDS = """
import sys
from durable_core.record import StepError
class Declined(Exception):
    pass
def record():
    return StepError.from_exception(Declined())
if __name__ == "__main__":
    import cards
    mine, theirs = record(), cards.record()
    assert mine.type == theirs.type == sys.argv[1], (mine.type, theirs.type)
    assert mine.matches(Declined) and mine.matches(cards.Declined) and theirs.matches(Declined)
"""


@pytest.mark.parametrize("how", [["cards.py"], ["-m", "cards"]])
def test_a_class_of_the_program_itself_has_one_name(tmp_path: Path, how: list[str]) -> None:
    """Whether it is run as a script or a module, or imported by the worker that takes over."""
    (tmp_path / "cards.py").write_text(CARDS)
    subprocess.run([sys.executable, *how, "cards.Declined"], cwd=tmp_path, check=True)


SPAWNING = """
import multiprocessing
from durable_core.record import StepError
class Declined(Exception):
    pass
def name():
    return StepError.from_exception(Declined()).type
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(name) == name() == "spawning.Declined", pool.apply(name)
"""


def test_a_class_of_the_program_itself_has_that_name_in_its_children(tmp_path: Path) -> None:
    """Those of multiprocessing know the program as `__mp_main__`."""
    (tmp_path / "spawning.py").write_text(SPAWNING)
    subprocess.run([sys.executable, "spawning.py"], cwd=tmp_path, check=True)


def test_a_class_of_a_program_without_a_file_keeps_its_module() -> None:
    """As on the command line."""
    source = "from durable_core.record import StepError\nclass E(Exception): pass\nprint(StepError.from_exception(E()).type)"
    assert subprocess.check_output([sys.executable, "-c", source], text=True) == "__main__.E\n"


@pytest.mark.parametrize(
    "error",
    [
        RunBusy("run", holder="process 7", since=MOMENT),
        RunBusy("run", holder="process 7", since=None),
        StepFailed(FULL),
        ResultNotRecorded(FULL, {"a": 1}),
        LockLost("lost"),
        CorruptLog("line 7"),
        errors.StepInterrupted(FULL),
        errors.StepInterrupted(FULL, unlocked=True),
        errors.RunCancelled(FULL),
        errors.AlreadyDecided(FULL, "approved by 'alice'"),
        errors.RunSuspended("run", waiting_for=("ask", "nap"), until=MOMENT),
        errors.RunSuspended("run", waiting_for=("ask",), until=None),
        *(made("text") for made in (errors.StepReused, errors.NestedStep, errors.StepDrift, errors.UnrecordableValue)),
        *(made("text") for made in (errors.Refused, errors.NotFound, errors.DeadlinePassed, errors.CopyConflict)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error: BaseException) -> None:
    """Errors come back from worker processes, and are copied, as they were: message, attributes and notes."""
    error.add_note("a note")
    for made in (*(pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)), copy.copy(error), copy.deepcopy(error)):
        assert type(made) is type(error)
        assert (str(made), made.args) == (str(error), error.args)
        assert vars(made) == vars(error)


def test_an_error_of_a_users_own_can_be_pickled() -> None:
    """A subclass need not know how its attributes travel."""
    error = _OurRefusal(7, why="it is late")
    made = pickle.loads(pickle.dumps(error))
    assert (str(made), vars(made)) == ("7 is refused", {"number": 7, "why": "it is late"})


class _OurRefusal(errors.Refused):
    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(f"{number} is refused")
        self.number = number
        self.why = why


BANK = StepError("bank.errors.Closed", "the bank is closed")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "run 'run' failed at step 'pay-back': Closed: the bank is closed"),
        ({"attempt": 3}, "run 'run' failed at step 'pay-back' after 3 attempts: Closed: the bank is closed"),
        ({"error": StepError("KeyError")}, "run 'run' failed at step 'pay-back': KeyError"),
        ({"step_id": "$flow", "kind": "flow"}, "run 'run' failed: Closed: the bank is closed"),
    ],
)
def test_a_failure_says_run_step_and_error_first(fields: dict[str, Any], message: str) -> None:
    """The class stands there by its own name; of `$flow`, which is the library's, nothing is said."""
    assert str(StepFailed(record(**{"step_id": "pay-back", "status": "failure", "error": BANK, **fields}))) == message


def test_a_failed_flow_says_what_its_step_said() -> None:
    """The failure of a step that ended a flow is told once."""
    step = StepFailed(record(step_id="pay-back", status="failure", error=BANK))
    flow = StepFailed(record(step_id="$flow", kind="flow", status="failure", error=StepError.from_exception(step)))
    assert str(flow) == str(step) == "run 'run' failed at step 'pay-back': Closed: the bank is closed"


@pytest.mark.parametrize(("reason", "shown"), [("a\x1b[2Jb", ": a\\x1b[2Jb"), (7, ": 7"), (None, "")])
def test_a_cancellation_shows_its_reason_as_text(reason: Any, shown: str) -> None:
    """Whatever stands in the note, a terminal is not moved by it."""
    assert str(errors.RunCancelled(record(note={"reason": reason}, ended_at=MOMENT))).endswith(
        f"at 2026-03-29T01:59:59+00:00{shown}"
    )


def test_what_is_not_there_is_refused() -> None:
    """`NotFound` is one of the refusals that callers catch together."""
    assert issubclass(errors.NotFound, errors.Refused)
    assert durable_core.NotFound is errors.NotFound


def test_a_failure_replayed_equals_the_failure_raised() -> None:
    """`StepFailed` is equal by its record, and needs a record with an error."""
    again = StepRecord.from_json(FULL.to_json())
    assert StepFailed(again) == StepFailed(FULL)
    assert hash(StepFailed(again)) == hash(StepFailed(FULL))
    assert StepFailed(FULL) != StepFailed(record(error=FULL.error))
    assert (StepFailed(FULL).run_id, StepFailed(FULL).step_id) == ("run", "step")
    with pytest.raises(ValueError, match="needs a record with status 'failure'"):
        StepFailed(record())


def test_revisions_may_come_in_any_order() -> None:
    """`get` returns the highest revision, whichever was appended last."""

    async def newest() -> StepRecord | None:
        store = MemoryStore()
        for revision in (2, 0, 1):
            await store.append(StepRecord(run_id="run", step_id="step", revision=revision))
        return await store.get("run", "step")

    found = asyncio.run(newest())
    assert found is not None
    assert found.revision == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_child_forked_behind_pythons_back_makes_ids_of_its_own() -> None:
    """A server written in C forks its workers without telling Python."""
    program = (
        "import ctypes, os\nfrom durable_core import StepRecord\nStepRecord(run_id='r', step_id='s')\n"
        "for _ in range(2):\n if ctypes.PyDLL(None).fork() == 0:\n"
        "  print(StepRecord(run_id='r', step_id='s').id, flush=True); os._exit(0)\n os.wait()\n"
        "print(StepRecord(run_id='r', step_id='s').id)"
    )
    ids = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert len(set(ids)) == 3


def test_a_name_that_is_no_text() -> None:
    """It is refused when the record is made, and a name of another class of text becomes plain."""
    with pytest.raises(TypeError, match="name must be a str, not 7"):
        StepRecord(run_id="run", step_id="step", name=7)  # type: ignore[arg-type]

    class Names(StrEnum):
        CHARGE = "charge"

    record = StepRecord(run_id="run", step_id=Names.CHARGE, name=Names.CHARGE)
    assert type(record.step_id) is type(record.name) is str
