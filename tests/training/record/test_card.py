"""The model card and its curves, out of training.json."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata_training.record.card import render_model_card, write_card
from stairdata_training.record.curves import curves

HOSTILE = "x\n---\nbase_model: a/b\n---\n# <script>alert(1)</script> | `a` **b** [c](javascript:d) {{ 7 * 7 }} \u202e"
INTERVAL = {"value": 0.75, "low": 0.625, "high": 0.875, "prompts": 40, "rows": 90}
RECORD: dict[str, Any] = {
    "fingerprint": "f" * 64,
    "trainer": "dpo/2",
    "config": {
        "model": "/home/alice/runs/sft",
        "output": "/home/alice/runs/dpo-1",
        "beta": 0.2,
        "learning_rate": 5e-7,
        "scheduler": "cosine",
        "gradient_checkpointing": True,
        "lora": {"rank": 16, "target_modules": ["q_proj"]},
        "max_rows": None,
    },
    "summary": {
        "rows": 64,
        "tokens": 12345,
        "steps": 3,
        "seconds": 1.5,
        "first_loss": 0.6931,
        "last_loss": 0.5,
        "losses": [[1, 0.6931], [2, 0.6], [3, 0.5]],
        "output": "dpo-1",
    },
    "metrics": [
        {"step": 1, "loss": 0.6931, "rewards/margins": 0.0, "rewards/accuracies": 0.5, "grad_norm": 1.0},
        {"step": 2, "loss": 0.6, "rewards/margins": 0.1, "rewards/accuracies": 0.75, "grad_norm": 1.0},
        {"step": 3, "loss": 0.5, "rewards/margins": 0.2, "rewards/accuracies": 1.0, "grad_norm": 1.0},
    ],
    "data": {"reference": "preference_pairs@1.2.0", "content_hash": "c" * 64, "repo": "org/pairs", "commit": "a" * 40},
    "base_model": {"name": "org/base-1B", "revision": "b" * 40},
    "environment": {"python": "3.11.9", "packages": {"torch": "2.13.0"}, "device": "a device", "threads": 2},
    "lengths": {"rows": 64, "half": 100, "most": 200, "longest": 300, "prefix_share": 0.4, "dropped": ["x1", "x2"]},
    "weights": {"changed_share": 0.033, "margin_left": 0.56},
    "warnings": ["the saved weights have 0.56 of the margin"],
    "held_out": {"accuracy": INTERVAL, "margin": INTERVAL, "accuracy_by_task": {"safety": INTERVAL}},
}
PRM = {
    "accuracy": INTERVAL,
    "length_rule": {"prefers": "longer", "accuracy": INTERVAL | {"value": 0.7}},
    "better_than_length": False,
    "calibration": [
        {"low": 0.5, "high": 0.75, "pairs": 5, "confidence": 0.6, "accuracy": 0.5},
        {"low": 0.75, "high": 1.0, "pairs": 0, "confidence": None, "accuracy": None},
    ],
    "expected_calibration_error": 0.1,
}


def record(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(RECORD) | changes


def head(card: str) -> Any:
    """Read the YAML as the Hub does: up to the first line of three dashes after the opening one."""
    match = re.match(r"\A---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match.group(1))


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def test_the_head_is_what_the_hub_reads() -> None:
    assert head(render_model_card(record(), [])) == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base-1B",
        "datasets": ["org/pairs"],
        "tags": ["stair", "stairdata", "safety", "alignment", "dpo", "arxiv:2502.02384"],
    }
    assert head(render_model_card(record(license="cc-by-nc-4.0"), []))["license"] == "cc-by-nc-4.0"


def test_a_local_start_model_is_no_model_of_the_hub_and_its_path_stays_here() -> None:
    card = render_model_card(record(base_model={"name": "/home/alice/runs/sft", "revision": "0123456789abcdef"}), [])
    assert "base_model" not in head(card)
    assert "start model: sft, a local folder (content 0123456789abcdef)" in card.replace("\\", "")
    assert "alice" not in card
    assert "base_model" not in head(render_model_card(record(base_model={"name": "runs/sft"}), []))


def test_the_card_says_what_it_was_trained_on_and_how_it_went() -> None:
    card = render_model_card(record(), []).replace("\\", "")
    for said in (
        f"data: preference_pairs@1.2.0, content {'c' * 16}, on the Hub as org/pairs, commit {'a' * 40}",
        "loss: 0.6931 at the first step, 0.5000 at the last",
        "| beta | 0.2 |",
        "| scheduler | cosine |",
        "| lora.rank | 16 |",
        "| gradient_checkpointing | true |",
        "- margin_left: 0.56",
        "- prefix_share: 0.4",
        "| accuracy_by_task, safety | 0.750 | 0.625 | 0.875 | 40 | 90 |",
        "- torch: 2.13.0",
        "- the saved weights have 0.56 of the margin",
    ):
        assert said in card
    assert "- half of the rows have at most: 100" in card
    for unsaid in ("x1", "q_proj", "dpo-1", "max_rows", "alice"):
        assert unsaid not in card


def test_the_parent_of_a_manifest_and_the_number_of_a_trainer_are_read() -> None:
    parent = {"kind": "prm_pairs", "version": "1.3.0", "content_hash": "d" * 64, "repo": None, "commit": None}
    less = record(data=parent, identity={"trainer": "prm/2"})
    del less["trainer"]
    card = render_model_card(less, []).replace("\\", "")
    assert f"- data: prm_pairs@1.3.0, content {'d' * 16}\n" in card
    assert "- trainer: prm/2, by" in card
    assert head(card)["pipeline_tag"] == "text-classification"
    assert "# STAIR actor after supervised" in render_model_card({"summary": {"method": "sft"}}, [])


def test_a_reward_model_no_better_than_length_is_marked_first() -> None:
    card = render_model_card(record(trainer="prm/2", held_out=PRM), [])
    assert "> **Mark: not better than length.**" in body(card)
    assert body(card).index("not better than length") < body(card).index("## How it was trained")
    plain = card.replace("\\", "")
    assert "| length_rule, accuracy | 0.700 |" in plain
    assert "expected_calibration_error: 0.1" in plain
    assert "length_rule.prefers: longer" in plain
    assert head(card)["pipeline_tag"] == "text-classification"
    better = render_model_card(record(trainer="prm/2", held_out=PRM | {"better_than_length": True}), [])
    assert "Mark:" not in better


def test_a_group_of_one_prompt_has_no_bounds() -> None:
    alone = {"value": 1.0, "low": None, "high": None, "prompts": 1, "rows": 3}
    card = render_model_card(record(held_out={"accuracy": alone}), [])
    assert "| accuracy | 1.000 | one prompt | one prompt | 1 | 3 |" in card


@pytest.mark.slow
def test_curves_are_drawn_and_shown(tmp_path: Path) -> None:
    written = write_card(tmp_path, record())
    assert sorted(path.name for path in written) == ["README.md", "loss.png", "margin.png"]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for name in ("loss.png", "margin.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in card
    assert [picture.file for picture in curves(record(trainer="prm/2", held_out=PRM))][-1] == "calibration.png"
    assert [picture.png for picture in curves(record())] == [picture.png for picture in curves(record())]


def test_losses_of_the_summary_are_enough_and_figures_that_are_not_finite_are_skipped() -> None:
    assert [picture.file for picture in curves(record(metrics=[]))] == ["loss.png"]
    broken = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5, "rewards/margins": float("inf")}]
    assert [picture.file for picture in curves(record(metrics=broken))] == ["loss.png"]
    assert curves({}) == []


def test_without_matplotlib_the_card_has_no_pictures_and_speaks_of_none(tmp_path: Path) -> None:
    code = (
        "import sys, json; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from stairdata_training.record.card import write_card\n"
        "print([path.name for path in write_card(Path(sys.argv[1]), json.loads(sys.argv[2]))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), json.dumps(RECORD)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "['README.md']\n", done.stderr
    assert ".png" not in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", RECORD)
def test_a_part_that_is_missing_is_left_out(key: str) -> None:
    less = record()
    del less[key]
    assert head(render_model_card(less, []))["library_name"] == "transformers"
    assert "# STAIR" in render_model_card(record(**{key: None}), [])


def test_an_empty_record_has_a_card(tmp_path: Path) -> None:
    write_card(tmp_path, {})
    assert "library_name" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_names_stay_names() -> None:
    hostile = record(
        data={"reference": HOSTILE, "commit": HOSTILE, "repo": HOSTILE, "content_hash": HOSTILE},
        base_model={"name": HOSTILE, "revision": HOSTILE},
        warnings=[HOSTILE],
        environment={"device": HOSTILE, HOSTILE: HOSTILE},
        lengths={HOSTILE: 3},
        config={HOSTILE: 1, "scheduler": HOSTILE},
        held_out={"accuracy_by_task": {HOSTILE: INTERVAL}},
        license=HOSTILE,
        fingerprint=HOSTILE,
        trainer=f"dpo/{HOSTILE}",
    )
    card = render_model_card(hostile, [])
    assert head(card).keys() == {"license", "library_name", "pipeline_tag", "tags"}
    assert head(card)["license"] == "unknown"
    assert "<script>" not in card
    assert "\u202e" not in card
    assert not re.search(r"(?<!\\)\[c\]", card)
    assert "\n# " not in body(card).removeprefix("\n# STAIR")
    table = [line for line in card.splitlines() if line.startswith("| accuracy")]
    assert len(re.findall(r"(?<!\\)\|", table[0])) == 7


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(RECORD)), JSON)
def test_a_part_of_any_other_shape_breaks_no_card(key: str, value: Any) -> None:
    card = render_model_card(record(**{key: value}), [])
    assert isinstance(head(card), dict)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["metrics", "summary", "held_out"]), JSON)
def test_a_part_of_any_other_shape_breaks_no_curve(key: str, value: Any) -> None:
    curves({key: value})
