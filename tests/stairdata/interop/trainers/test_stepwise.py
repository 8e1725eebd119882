"""Labels of steps, from V against a threshold, and the answer that the pieces are again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stairdata.interop.trainers.exporting import TrainerOptions, export_to_trainer
from stairdata.interop.trainers.stepwise import paths_between
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.rendering import load_tokenizer, render_prompt
from tests.stairdata.interop.trainers.conftest import OUTPUT, PROMPT, STEP, MakeArtifact, pair, tree

A, B, C = (STEP.format(title) for title in "ABC")
YES = "\n\n" + OUTPUT.format("yes")


def exported(artifact: Artifact, folder: Path, **options: Any) -> list[dict[str, Any]]:
    export_to_trainer(artifact, folder, "stepwise", TrainerOptions(**options))
    return [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def test_paths_of_a_tree_with_the_value_of_each_step(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    artifact = make_artifact("trees", [tree()])
    rows = exported(artifact, tmp_path / "out")
    assert sorted(rows, key=lambda row: len(row["completions"])) == [
        {"prompt": PROMPT, "completions": [B], "labels": [False]},
        {"prompt": PROMPT, "completions": [A, YES[1:]], "labels": [True, True]},
    ]
    strict = exported(artifact, tmp_path / "strict", threshold=1.0)
    assert {tuple(row["labels"]) for row in strict} == {(False,), (False, True)}


def test_pieces_with_the_separator_are_the_answer(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    (row,) = (row for row in exported(make_artifact("trees", [tree()]), tmp_path / "out") if len(row["labels"]) == 2)
    assert "\n".join(row["completions"]) == A + YES


def test_pairs_say_the_values_of_the_nodes_that_they_compare(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    """What lies before the first of them is one piece with it, and each answer stands once."""
    tree_id = pair(0)["tree_id"]
    deep = {"tree_id": tree_id, "prompt": "hi 0", "prompt_id": pair(0)["prompt_id"]}
    first = pair(0, **deep, chosen=A + "\n\n" + B, rejected=A + "\n\n" + C, prefix_length=len(A))
    below = {"chosen": A + "\n\n" + B + YES, "rejected": A + "\n\n" + B + "\n\n" + C}
    second = pair(1, **(deep | below), prefix_length=len(A + "\n\n" + B))
    artifact = make_artifact("prm_pairs", [first, second, pair(2)])
    rows = exported(artifact, tmp_path / "out")
    assert [row for row in rows if row["prompt"] == "hi 0"] == [
        {"prompt": "hi 0", "completions": [f"{A}\n\n{B}", YES[1:]], "labels": [True, True]},
        {"prompt": "hi 0", "completions": [f"{A}\n\n{B}", f"\n{C}"], "labels": [True, False]},
        {"prompt": "hi 0", "completions": [f"{A}\n\n{C}"], "labels": [False]},
    ]
    assert len(rows) == 5


def test_a_text_without_a_closing_tag_is_before_no_other() -> None:
    """Trees of other programs may hold answers that begin alike: they are siblings."""
    assert list(paths_between({"ab": 1.0, "abc": 2.0})) == [[("ab", 1.0)], [("abc", 2.0)]]


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_prompts_in_the_template_of_a_model(
    family: str, make_artifact: MakeArtifact, actors: dict[str, Path], tmp_path: Path
) -> None:
    """Its trainers put BOS in front themselves."""
    tokenizer = load_tokenizer(actors[family])
    rows = exported(make_artifact("trees", [tree()]), tmp_path / "out", tokenizer=str(actors[family]))
    expected = render_prompt(tokenizer, PROMPT).text.removeprefix(tokenizer.bos_token)
    assert {row["prompt"] for row in rows} == {expected}
