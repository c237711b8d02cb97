"""What the fuzz tests share: how many examples they try, hostile values, damaged bytes, and inputs that are kept.

`nox -s fuzz` tries many more. An input that was once answered wrongly is kept as a file in `corpus/<what is parsed>/`, and tried
first on every run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "40"))
_CORPUS: Final = Path(__file__).parent / "corpus"

fuzzed: Final = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # in the tests always the same ones, so that none fails now and then
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""The decorator of each fuzz test."""

DEEP: Final = 5_000  # levels, beyond what Python's own recursion takes

LEAVES: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 2**31, 2**63, 2**64, 10**400]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "$flow", "success", "\0", "\ud800", "\x1b[2J", "2026-01-01T00:00:00+00:00", "0000-00-00", "x" * 600]),
)
"""Values that may stand anywhere in JSON."""

_NAMES: Final = (
    "answered approvers asked at begun by cancelled deadline defaults failed flow handed_back input lost origin parent parked"
    " quorum reason root run show step told_at value votes waiting_for why"
)
KEYS: Final = st.sampled_from(_NAMES.split()) | st.text(max_size=4)

VALUES: Final = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10
)
"""JSON values of any shape, with the names that notes of entries have; some of them are no JSON."""

DEEP_JSON: Final = st.sampled_from([b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP])


def kept(what: str) -> list[bytes]:
    """Return the inputs that are kept."""
    return [path.read_bytes() for path in sorted((_CORPUS / what).iterdir())]


def places(size: int, step: int) -> range:
    """Return the places to damage: all of them with `nox -s fuzz`, otherwise every `step`-th."""
    return range(0, size, 1 if EXAMPLES >= 1_000 else step)


@st.composite
def damaged(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were right, and then were changed in some places: flipped, cut out, doubled, put in."""
    data = bytearray(draw(good))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["flip", "cut", "double", "insert", "end"]))
        size = draw(st.integers(1, 12))
        if how == "flip" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del data[at : at + size]
        elif how == "double":
            data[at:at] = data[at : at + size]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=8) | st.sampled_from([b"\n", b"\0", b"null", b'"', b"\xff", b"{", b"1e999"]))
        else:
            del data[at:]
    return bytes(data)


def json_bytes(value: object) -> bytes:
    """Write a value as JSON, or as what Python takes for it: NaN and lone surrogates stay."""
    return json.dumps(value).encode()
