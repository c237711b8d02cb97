"""JSON that is shown to people means what it did, and moves no terminal."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from durable_cli._text import harmless, harmless_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(value=VALUES, extra=st.sampled_from("\x1b\x9b\u202e\u2028\u2066\ufeff\U000e0041\x7f\x85"))
def test_what_is_escaped_in_json_is_the_same_json(value: object, extra: str) -> None:
    """Whatever stands in it, on one line or on several."""
    for indent in (None, 2):
        shown = harmless_json(json.dumps([value, extra], ensure_ascii=False, indent=indent))
        assert json.loads(shown) == [value, extra]
        assert harmless(shown, keep_lines=True) == shown
