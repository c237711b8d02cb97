"""Logs of the file store that were damaged: what is read is right, or a clear error says what is wrong with them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_core import CorruptLog, DurableError, StepRecord, StoreError, control
from durable_file import FileStore
from durable_file._lines import seal
from tests.fuzz.fuzzing import VALUES, damaged, fuzzed, json_bytes, kept, places
from tests.fuzz.test_records import GOOD, other_fields


async def test_a_log_with_a_changed_byte_anywhere(tmp_path: Path) -> None:
    """It is refused, its last line end included. Only a NUL there looks as if the last append had never returned."""
    path = tmp_path / "all.jsonl"
    async with FileStore(path) as store:
        for run_id in ("r", "other", "r"):
            await store.append(StepRecord(run_id=run_id, step_id=str(path.exists())))
    good = path.read_bytes()
    ends = {at for at, byte in enumerate(good) if byte == 10}
    for at in sorted({*places(len(good), 23), *ends}):
        for byte in {good[at] ^ 1 << at % 8, good[at] ^ 0xFF, ord("\n"), ord(" ")} - {good[at]}:
            bad = bytearray(good)
            bad[at] = byte
            path.write_bytes(bad)
            async with FileStore(path) as store:
                more = StepRecord(run_id="r", step_id="more")
                for ask in (partial(store.list, "r"), partial(store.append, more), partial(_scan, store, "r")):
                    with pytest.raises(CorruptLog, match=r"all\.jsonl, (line \d|last line): "):
                        await ask()
            assert path.read_bytes() == bad


async def _scan(store: FileStore, run_id: str) -> list[StepRecord]:
    return [record async for record in store.scan(run_id)]


async def test_a_log_cut_off_anywhere(tmp_path: Path) -> None:
    """What stands before the cut in whole lines is read, and no more; then the log goes on."""
    path = tmp_path / "all.jsonl"
    async with FileStore(path) as store:
        records = [await store.append(StepRecord(run_id="r", step_id=str(number))) for number in range(4)]
    good = path.read_bytes()
    for size in places(len(good), 23):
        path.write_bytes(good[:size])
        whole = records[: good[:size].count(b"\n")]
        async with FileStore(path) as store:
            assert [*await store.list("r")] == whole
            assert await _scan(store, "r") == whole
            more = await store.append(StepRecord(run_id="r", step_id="more"))
            assert [*await store.list("r")] == [*whole, more]


LINES = damaged(GOOD) | other_fields() | GOOD | VALUES.map(json_bytes)


def check_lines(bodies: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "all.jsonl"
        path.write_bytes(b"".join(seal(body.replace(b"\n", b"") or b"{}") + b"\n" for body in bodies))

        async def look() -> None:
            async with FileStore(path) as store:
                for run_id in ("run-1", "r"):
                    with suppress(StoreError):
                        records = [*await store.list(run_id)]
                        assert await _scan(store, run_id) == records
                        assert {record.run_id for record in records} <= {run_id}
                    with suppress(StoreError):
                        await store.get(run_id, "charge")
                with suppress(DurableError):
                    [each async for each in control.runs(store)]
                with suppress(StoreError):
                    await store.append(StepRecord(run_id="r", step_id="more"))

        asyncio.run(look())


@fuzzed
@given(st.lists(LINES, min_size=1, max_size=4))
def test_any_lines_with_the_right_checksum(bodies: list[bytes]) -> None:
    """Each is an entry, or an error that names it; the checksum is no proof that it was us."""
    check_lines(bodies)


@pytest.mark.parametrize("body", kept("lines"))
def test_kept_lines(body: bytes) -> None:
    check_lines([body])
