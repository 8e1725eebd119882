from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata_schemas import licenses
from stairdata_schemas.licenses import is_laxer, normal, rank, strictest

KNOWN = sorted(
    licenses.FREE
    | licenses.PERMISSIVE
    | licenses.SHARE_ALIKE
    | licenses.NON_COMMERCIAL
    | licenses.NON_COMMERCIAL_SHARE_ALIKE
    | licenses.NO_DERIVATIVES
)
known = st.lists(st.sampled_from(KNOWN), min_size=1, max_size=6)


@given(known)
def test_the_strictest_asks_no_less_than_any(names: list[str]) -> None:
    found = strictest(names)
    assert found is not None
    assert all((rank(found) or 0) >= (rank(name) or 0) for name in names)


@given(known, st.randoms())
def test_order_and_repetition_do_not_matter(names: list[str], order: object) -> None:
    shuffled = [*names, *names]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert strictest(shuffled) == strictest(names)


@given(known, known)
def test_by_stages_is_the_same_as_at_once(first: list[str], second: list[str]) -> None:
    together, staged = strictest([*first, *second]), strictest([strictest(first), *second])
    assert together is not None
    assert staged is not None
    assert rank(staged) == rank(together)


@given(known, st.sampled_from([None, "", "unknown", "other", " Unknown "]))
def test_one_unknown_makes_all_unknown(names: list[str], nothing: str | None) -> None:
    assert strictest([*names, nothing]) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["MIT", "mit "], "mit"),
        (["llama3.1"], "llama3.1"),
        (["llama3.1", "mit"], None),
        (["mit", "cc0-1.0"], "mit"),
        (["cc-by-sa-4.0", "cc-by-nc-4.0"], "cc-by-nc-sa-4.0"),
        (["cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0"], "cc-by-nc-nd-4.0"),
    ],
)
def test_examples(names: list[str], expected: str | None) -> None:
    assert strictest(names) == expected


def test_what_is_laxer() -> None:
    assert is_laxer("mit", "cc-by-nc-4.0")
    assert not is_laxer("cc-by-nc-4.0", "mit")
    assert not is_laxer("llama3.1", "llama3.1")
    assert is_laxer("llama3.1", "mit")  # can't be compared
    assert normal("Other") is None
