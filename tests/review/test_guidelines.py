"""What reviewers are told before they begin."""

from __future__ import annotations

import pytest

from stairdata_review.guidelines import guidelines_of


@pytest.mark.parametrize("kind", ["preference_pairs", "trees"])
@pytest.mark.parametrize("in_argilla", [True, False])
def test_guidelines_begin_with_a_warning_and_a_way_to_skip(kind: str, in_argilla: bool) -> None:
    version, text = guidelines_of(kind, in_argilla=in_argilla, contact="Ann & Bob <a@b>")
    assert version in {"pairs/1", "answers/1"}
    first = text.split("## ")[1]
    assert "harmful or disturbing" in first
    assert "You may skip any item" in first
    assert "<a@b>" not in text
