"""Keys: canonical, injective, order-free; golden values so that a changed key fails loudly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.keys import digest_bytes, encode, is_digest, make_key

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


def same(a: Any, b: Any) -> bool:
    """Equality that tells True from 1 from 1.0, and 0.0 from -0.0, as the encoding must."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b) and str(a) == str(b)


@given(values, values)
def test_encoding_is_injective(a: Any, b: Any) -> None:
    assert (encode(a) == encode(b)) == same(a, b)


@given(st.dictionaries(st.text(), scalars, min_size=2))
def test_order_of_a_mapping_does_not_matter(table: dict[str, Any]) -> None:
    assert encode(table) == encode(dict(reversed(table.items())))


def test_lengths_cannot_be_confused() -> None:
    assert encode(["a", "bc"]) != encode(["ab", "c"])
    assert encode([["a"], "b"]) != encode([["a", "b"]])
    assert encode("1") != encode(1) != encode(True) != encode(1.0) != encode(b"1")


@pytest.mark.parametrize("value", [{1, 2}, object(), 1j])
def test_what_has_no_stable_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no canonical encoding"):
        encode(value)


def test_golden() -> None:
    assert encode({"b": [1, None], "a": True}) == b"M22:S1:aB1:1S1:bL7:I1:1N0:"
    assert make_key("block/1", "x", 2) == "42f1cfe39866bfcedd1321d544e91dfa50392b264e85ca34a750276acb33c6d1"
    assert digest_bytes(b"abc") == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"


def test_domains_are_apart() -> None:
    assert make_key("a", 1) != make_key("b", 1)
    assert is_digest(make_key("a", 1))
