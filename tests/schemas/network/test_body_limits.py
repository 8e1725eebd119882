"""How values of a JSON document are counted while it arrives in pieces."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_schemas.network.body_limits import BodyLimit, BodyLimitError, BodyMeter

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text(alphabet='\\"[{,'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a\\",{'), inner),
    max_leaves=12,
)


def size(value: object) -> int:
    """Count what `BodyMeter` counts, in the value itself: containers, and elements after the first."""
    if not isinstance(value, dict | list):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(inner) - 1) + sum(map(size, inner))


@given(VALUES, st.lists(st.integers(0, 10_000), max_size=6), st.booleans())
@settings(max_examples=60)
def test_values_are_counted_wherever_the_pieces_end(value: object, cuts: list[int], is_ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    meter = BodyMeter(BodyLimit(len(body), size(value)))
    for start, end in pairwise(sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})):
        meter.count(body[start:end])
    assert (meter.bytes, meter.values) == (len(body), size(value))
    if size(value):
        with pytest.raises(BodyLimitError, match=re.escape(f"more than {size(value) - 1:,} values")):
            BodyMeter(BodyLimit(len(body), size(value) - 1)).count(body)
    with pytest.raises(BodyLimitError, match=re.escape(f"more than {len(body) - 1:,} bytes")):
        BodyMeter(BodyLimit(len(body) - 1, None)).count(body)


@pytest.mark.parametrize("text", [b'"', b'\\"', b"[", b'"' + b'\\"' * 9, b"\\", b'\\\\"'], ids=repr)
def test_time_does_not_grow_with_the_square_of_a_piece(text: bytes) -> None:
    text *= 1_000_000 // len(text)
    meter = BodyMeter(BodyLimit(len(text), len(text)))
    began = time.process_time()
    meter.count(text)
    assert time.process_time() - began < 5
