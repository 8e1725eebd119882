"""What a dataset and its records show in Argilla."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_review.blinding import other_side
from stairdata_review.items import ReviewItem, item_ids, read_items
from stairdata_review.rounds.display_text import CHAT_LIMIT, TEXT_LIMIT
from stairdata_review.rounds.settings import layout_of, record_of
from stairdata_schemas.artifacts import Artifact
from tests.review.samples import pairs_of

FACTS = {"margin": 1.0, "depth": 1, "task": None, "chosen_value": 1.0, "rejected_value": 0.0, "iteration": 1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return pairs_of(tmp_path_factory.mktemp("artifacts"), 6)


def test_a_record_is_blind_and_whole(pairs: Artifact) -> None:
    hidden = {part["name"] for part in layout_of(pairs.kind, "x").metadata if not part["visible_for_annotators"]}
    assert hidden == {"chosen_value", "rejected_value", "a_is"}
    for item in read_items(pairs, item_ids(pairs)):
        record, left_out = record_of(item, pairs.kind, 42)
        first = record["metadata"]["a_is"]
        assert record["fields"]["a"].splitlines()[-1] in item.texts[first]
        assert record["fields"]["b"].splitlines()[-1] in item.texts[other_side(first)]
        assert ("prefix" in record["fields"]) == bool(item.prefix)
        assert left_out == 0
        assert "suggestions" not in record
        assert record["external_id"] == item.item_id


@pytest.mark.slow
@given(st.text("a&<😀\n", min_size=1, max_size=20), st.integers(0, 5))
@settings(max_examples=8)
def test_long_texts_are_cut_to_what_argilla_takes(piece: str, more: int) -> None:
    text = piece * (60_000 // len(piece) + more)
    record, left_out = record_of(
        ReviewItem("i", text, "", {"chosen": text, "rejected": "b"}, FACTS), "preference_pairs", 1
    )
    assert len(record["fields"]["prompt"][0]["content"]) <= CHAT_LIMIT
    assert all(len(record["fields"][name]) <= TEXT_LIMIT for name in ("a", "b"))
    assert left_out > 0


def test_no_field_runs_what_a_model_wrote_and_nothing_is_suggested(pairs: Artifact) -> None:
    for kind in ("preference_pairs", "prm_pairs", "trees", "structured_cot"):
        layout = layout_of(kind, "x")
        for part in layout.fields:
            assert part["settings"] == {"type": part["settings"]["type"], "use_markdown": False}
            assert part["settings"]["type"] in {"chat", "text"}
        required = [part["name"] for part in layout.questions if part["required"]]
        assert required == (["verdict", "safe"] if "pairs" in kind else ["safe", "helpfulness", "reasoning"])
        assert len(layout.guidelines) <= 10_000
