"""A log kept as lines reads as the records that were written."""

from __future__ import annotations

import pytest

from durable_core import MemoryStore, RecordLines, Runner, StepRecord
from durable_core.errors import CorruptLog


async def test_lines_read_as_records() -> None:
    """Each entry is decoded when asked for, and equals the one that was written."""
    records = [StepRecord(run_id="run", step_id=f"s{number}", result=b'"x"') for number in range(4)]
    lines = RecordLines([record.to_json() for record in records])
    assert lines == records
    assert [*lines] == records
    assert lines[-1] == records[-1]
    assert lines[1:3] == records[1:3]
    assert lines != records[1:]
    assert lines != records[:-1]
    assert lines != [*records, records[0]]
    assert repr(lines) == "<4 step records>"


async def test_a_runner_finds_the_newest_entry_of_each_step_in_lines() -> None:
    """By their heads, whatever order the entries have."""
    plain = MemoryStore()

    class Lines(MemoryStore):
        async def list(self, run_id: str) -> RecordLines:
            return RecordLines([record.to_json() for record in await super().list(run_id)])

    store = Lines()
    chain = [StepRecord(run_id="run", step_id="a", revision=n, status=s) for n, s in enumerate(("started", "started"))]
    done = StepRecord(run_id="run", step_id="a", revision=2, result=b"7")
    for target in (plain, store):
        for record in (chain[0], done, chain[1]):
            await target.append(record)
        assert await Runner(target, "run").step("a", int) == 7


@pytest.mark.parametrize("bad", [b"", b"PONG", b"{}", b'{"step_id":7}', b"[" * 100_000, b'{"x":"\xff"}'])
def test_a_bad_line_is_named(bad: bytes) -> None:
    """Whoever comes upon a bad line, by its head or by its record, says where it stands."""
    lines = RecordLines([StepRecord(run_id="run", step_id="s").to_json(), bad], where="the hash runs:1 in Redis, entry {}".format)
    match = r"^the hash runs:1 in Redis, entry 2: not a step record \("
    with pytest.raises(CorruptLog, match=match):
        [*lines.heads()]
    with pytest.raises(CorruptLog, match=match):
        list(lines)
    for index in (1, -1):
        with pytest.raises(CorruptLog, match=match):
            lines[index]
    with pytest.raises(CorruptLog, match=match):
        lines[1:][0]


def test_a_line_of_a_newer_version_is_named() -> None:
    """With the advice to upgrade."""
    line = StepRecord(run_id="run", step_id="s").to_json()
    for newer in (line.replace(b'"v":1', b'"v":2'), line.replace(b'"success"', b'"paused"')):
        lines = RecordLines([newer], where="here, entry {}".format)
        with pytest.raises(CorruptLog, match=r"^here, entry 1: .*upgrade durable-core$"):
            list(lines)
