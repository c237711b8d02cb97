"""Ids become keys that are legal, readable, and never those of another id."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_core import StoreError
from durable_core.testing import HOSTILE_IDS
from durable_s3._keys import Keys, number, segment, wakeup_name

IDS = st.one_of(
    st.sampled_from(HOSTILE_IDS),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=512).filter(
        lambda id_: len(id_.encode()) <= 512
    ),
)
LONGEST = Keys("p" * 580)


def test_a_key_can_be_read_by_a_person() -> None:
    """Plain ids stand in the key as they are, and the revision behind the number that sorts."""
    assert Keys("prod/eu").entry("user-42-onboard", "charge-trial", 3) == (
        "prod/eu/runs/user-42-onboard/charge-trial/9999999996.r3.json"
    )


@given(run_id=IDS, step_id=IDS, revision=st.integers(0, 9_999_999_999))
def test_keys_stay_within_the_limit(run_id: str, step_id: str, revision: int) -> None:
    """However long the ids and the prefix, a key has at most 1,024 bytes, and no part of it more than 255."""
    keys = [LONGEST.entry(run_id, step_id, revision), LONGEST.snapshot(run_id), LONGEST.lease(run_id, 7)]
    keys.append(LONGEST.wakeup(step_id, wakeup_name(run_id, datetime.max.replace(tzinfo=UTC))))
    assert all(len(key) <= 1024 for key in keys)
    assert all(len(part) <= 255 for key in keys for part in key.removeprefix(LONGEST.root).split("/"))
    assert all(part not in ("", ".", "..") for key in keys for part in key.split("/"))


@given(one=IDS, other=IDS)
def test_no_two_ids_share_a_part_of_a_key(one: str, other: str) -> None:
    assert (segment(one) == segment(other)) == (one == other)


def test_hostile_ids_share_no_part_of_a_key() -> None:
    """Nor do they differ in case alone, or by what a proxy would rewrite."""
    parts = {segment(id_) for id_ in HOSTILE_IDS}
    assert len(parts) == len(set(HOSTILE_IDS))
    assert all(part.isascii() and not set(part) & set(' /\\?#&+%"<>~').difference("%") for part in parts)


@given(run_id=IDS, cut=st.integers(0, 512))
def test_a_prefix_of_an_id_finds_its_key(run_id: str, cut: int) -> None:
    """Runs are listed by the start of their key; no run whose id has the prefix may be missed."""
    keys = Keys("p")
    assert keys.run(run_id).startswith(keys.runs(run_id[:cut]))
    assert keys.run_id(keys.run(run_id)) in (run_id, None)


def test_a_higher_number_sorts_first() -> None:
    """So that one LIST of one key finds the newest."""
    keys = [Keys("").entry("run", "step", revision) for revision in (0, 1, 9, 10, 11, 99, 100, 12_345_678)]
    assert sorted(keys, reverse=True) == keys
    assert [number(key) for key in keys] == [0, 1, 9, 10, 11, 99, 100, 12_345_678]


@pytest.mark.parametrize("prefix", ["a/../b", "./a", "a/..", "a\nb", "p" * 600, "é" * 300])
def test_a_prefix_that_clients_would_rewrite_is_refused(prefix: str) -> None:
    with pytest.raises(StoreError, match=r"^prefix "):
        Keys(prefix)


def test_a_revision_without_room_is_refused() -> None:
    with pytest.raises(StoreError, match="out of range"):
        Keys("").entry("run", "step", 10_000_000_000)
