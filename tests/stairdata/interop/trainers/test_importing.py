"""Sets of conversations that others have, as artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata.interop.trainers.exporting import TrainerOptions, export_to_trainer
from stairdata.interop.trainers.importing import import_conversations
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import InputError, UsageError
from tests.stairdata.cli.conftest import Ended
from tests.stairdata.interop.trainers.conftest import PROMPT
from tests.training.conftest import sft_row

Run = Callable[..., Ended]
USER = {"role": "user", "content": PROMPT}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
COT = sft_row(0)["completion"]


def imported(tmp_path: Path, source: str, kind: str, rows: list[Any], task: Any = "safety") -> Artifact:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = BuildOptions(root=tmp_path / "imported", max_quarantine=1)
    artifact = import_conversations(source, kind, [file], options, task)
    assert validate_artifact(artifact) == []
    return artifact


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("messages", {"messages": [USER, GOOD]}),
        ("trl", {"messages": [USER, GOOD]}),
        ("trl", {"prompt": PROMPT, "completion": "good"}),
        ("trl", {"prompt": [USER], "completion": [GOOD]}),
        ("trl", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "task": "helpfulness"}),
    ],
)
def test_prompts_with_their_answers(source: str, row: dict[str, Any], tmp_path: Path) -> None:
    (found,) = imported(tmp_path, source, "prompts", [row]).scan().collect().to_dicts()
    assert (found["prompt"], found["reference_answer"], found["source"]) == (PROMPT, "good", "rows.jsonl")
    assert found["task"] == row.get("task", "safety")


@pytest.mark.parametrize("kind", ["preference_pairs", "prm_pairs"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0},
    ],
)
def test_pairs_are_of_whole_answers(kind: str, row: dict[str, Any], tmp_path: Path) -> None:
    artifact = imported(tmp_path, "trl", kind, [row, row], None)
    first, second = artifact.scan().collect().to_dicts()
    assert (first["prompt"], first["chosen"], first["rejected"]) == (PROMPT, "good", "bad")
    assert (first["chosen_is_terminal"], first["granularity"], first["margin"]) == (True, "trajectory", 1.0)
    assert first["pair_id"] != second["pair_id"]
    assert "says only which is better" in artifact.manifest.notes[0]
    lost = {"field 'score_chosen' (rows)": 2} if "score_chosen" in row else {}
    assert artifact.manifest.details["not_taken_over"] == lost


def test_an_export_comes_back(cot: Artifact, pairs: Artifact, tmp_path: Path) -> None:
    for artifact in (cot, pairs):
        file = tmp_path / f"{artifact.kind}.jsonl"
        export_to_trainer(artifact, file, "trl", TrainerOptions(whole_answers=artifact is pairs))
        options = BuildOptions(root=tmp_path / "back")
        back = import_conversations("trl", artifact.kind, [file], options, "helpfulness")
        columns = ["prompt", "completion"] if artifact is cot else ["prompt", "chosen", "rejected"]
        rows = artifact.scan() if artifact is cot else artifact.scan().filter(pl.col("chosen_is_terminal"))
        assert back.scan().select(columns).collect().equals(rows.select(columns).collect())


def test_rows_that_break_a_rule_are_kept_apart(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"messages": [USER, {"role": "assistant", "content": COT}]},
        {"messages": [USER, {"role": "assistant", "content": COT}]},
        {"messages": [USER, GOOD]},
        {"messages": [USER]},
        {"messages": [USER, {"role": "assistant", "content": None}]},
        {"messages": "text"},
        {"messages": [{"role": "user", "content": "\u200b"}, GOOD]},
        {"messages": [{"role": "user", "content": "\ud800"}, GOOD]},
        {},
        [],
    ]
    artifact = imported(tmp_path, "messages", "structured_cot", rows)
    assert artifact.manifest.rows == 1
    assert artifact.manifest.quarantine == {
        "duplicate_answer": 1,
        "grammar_expected_block": 1,
        "missing_value": 2,
        "wrong_type": 2,
        "blank": 1,
        "not_unicode": 1,
        "not_an_object": 1,
    }


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD, USER, BAD]},
        {"messages": [{"role": "system", "content": "Be kind."}, USER, GOOD]},
        {"messages": []},
    ],
)
def test_a_conversation_of_several_turns_ends_the_import(row: dict[str, Any], tmp_path: Path) -> None:
    turns = ", ".join(message["role"] for message in row["messages"])
    with pytest.raises(
        InputError, match=rf"rows.jsonl, row 2: messages holds the turns '{turns}', .* nothing was writ"
    ):
        imported(tmp_path, "messages", "prompts", [{"messages": [USER]}, row])
    assert not list((tmp_path / "imported").rglob("manifest.json"))


def test_other_mistakes(tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputError, match="row 1: nothing says its task; add --task safety or --task helpfulness"):
        imported(tmp_path, "messages", "prompts", [{"messages": [USER]}], None)
    with pytest.raises(UsageError, match="can't import 'trees' from trl; --kind is one of prompts, structured_cot, pr"):
        imported(tmp_path, "trl", "trees", [])
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [USER, GOOD]}) + "\n")
    ended = run("import", rows, "--from", "mesages", "--kind", "prompts")
    assert (ended.status, "did you mean messages?" in ended.err) == (2, True)
    ended = run("import", rows, "--from", "messages", "--kind", "prompts", "--task", "safety")
    assert (ended.status, ended.out) == (0, "prompts@1.0.0\n"), ended.err
    ended = run("import", rows, "--from", "messages", "--kind", "preference-pairs")
    assert (ended.status, "can't import 'preference_pairs' from messages" in ended.err) == (2, True)
