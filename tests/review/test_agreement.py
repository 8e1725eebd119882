"""Agreement, against values worked out by hand or by brute force."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_review.agreement import agreement, seconds_an_answer
from stairdata_schemas.kinds import VERDICTS
from tests.review.samples import NOON, frame, review

FACTS = pl.DataFrame(
    {"item_id": [str(n) for n in range(20)], "task": ["safety", "helpfulness"] * 10, "depth": [1, 2] * 10}
)


def alpha_by_hand(answers: dict[int, list[str]]) -> float | None:
    """Krippendorff 2011: 1 - (n - 1) * sum of o_ck over c != k / sum of n_c n_k over c != k."""
    shared = {item: values for item, values in answers.items() if len(values) > 1}
    counts = Counter(value for values in shared.values() for value in values)
    n = sum(counts.values())
    observed = sum(
        sum(a != b for i, a in enumerate(values) for j, b in enumerate(values) if i != j) / (len(values) - 1)
        for values in shared.values()
    )
    expected = sum(counts[a] * counts[b] for a in counts for b in counts if a != b)
    return 1 - (n - 1) * observed / expected if expected else None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.sampled_from(VERDICTS)), min_size=1, max_size=30))
@settings(max_examples=60)
def test_alpha_is_krippendorffs(answers: list[tuple[int, int, str]]) -> None:
    known = {(item, reviewer): verdict for item, reviewer, verdict in answers}
    by_item: dict[int, list[str]] = {}
    for (item, _), verdict in known.items():
        by_item.setdefault(item, []).append(verdict)
    found = agreement(frame([review(str(i), f"r{r}", v) for (i, r), v in known.items()]), FACTS)
    expected = alpha_by_hand(by_item)
    assert found["verdict"]["alpha"] == (None if expected is None else pytest.approx(expected, abs=1e-4))
    pairs = [(a, b) for values in by_item.values() for n, a in enumerate(values) for b in values[:n]]
    assert found["verdict"]["pairs"] == len(pairs)
    share = sum(a == b for a, b in pairs) / len(pairs) if pairs else None
    assert found["verdict"]["pairwise"] == (None if share is None else pytest.approx(share, abs=1e-4))
    assert found["answers"] == len(known)


def test_agreement_by_task_depth_and_reviewer() -> None:
    rows = [
        review("0", "ann", "chosen", shown_first="chosen"), review("0", "bob", "chosen", shown_first="chosen"),
        review("1", "ann", "rejected", shown_first="chosen"), review("1", "bob", "tie", shown_first="chosen"),
        review("2", "ann", "both_bad", shown_first="rejected"),
    ]  # fmt: skip
    found = agreement(frame(rows), FACTS)
    assert found["items"] == 3
    assert found["reviewers"] == 2
    assert found["verdict"] == {"alpha": pytest.approx(0.4), "pairwise": 0.5, "pairs": 2}
    assert found["against_value"] == {"share": pytest.approx(0.6667), "of": 3}
    assert found["first_side"] == {"share": pytest.approx(0.6667), "of": 3}
    assert found["by_task"]["safety"]["verdict"] == {"alpha": None, "pairwise": 1.0, "pairs": 1}
    assert found["by_depth"]["2"]["verdict"]["pairwise"] == 0.0
    assert found["by_reviewer"]["bob"] == {
        "answers": 2, "against_value": {"share": 1.0, "of": 1}, "first_side": {"share": 1.0, "of": 1},
    }  # fmt: skip


def test_answers_of_other_kinds_are_measured_too() -> None:
    rows = [
        review(str(item), who, None, item_kind="trees", answers=json.dumps({"safe": safe, "helpfulness": stars}))
        for item, who, safe, stars in [
            (0, "a", "safe", 4),
            (0, "b", "safe", 5),
            (1, "a", "unsafe", 1),
            (1, "b", "safe", 1),
        ]
    ]
    found = agreement(frame(rows), FACTS)
    assert found["safe"]["pairwise"] == 0.5
    assert found["helpfulness"]["pairs"] == 2
    assert 0 < found["helpfulness"]["alpha"] < 1, "4 and 5 are nearer to each other than to 1"
    assert "verdict" not in found
    assert "against_value" not in found


def test_pace_leaves_breaks_out() -> None:
    minutes = [0, 1, 3, 100, 101]
    rows = [review(str(n), "a", "tie", submitted_at=NOON + timedelta(minutes=m)) for n, m in enumerate(minutes)]
    assert seconds_an_answer(frame(rows)) == 60.0
    assert seconds_an_answer(frame(rows[:1])) is None
