"""Answers as AlpacaEval takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata.interop.alpaca_eval import export_alpaca_eval
from stairdata_schemas import grammar
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.errors import InputError, UsageError
from stairdata_schemas.identity import prompt_id
from stairdata_schemas.kinds import polars_schema


def evaluations(root: Path, *changes: dict[str, Any]) -> Artifact:
    whole = grammar.render([grammar.Step("T:", "b")], "The Nile.")
    rows = [
        {
            "prompt_id": prompt_id("Name a river."),
            "benchmark": "alpaca_eval",
            "attack": "none",
            "response_id": f"{number:016x}",
            "sample": 0,
            "model": "dpo-1@1234abcd",
            "method": "sample",
            "response": whole,
            "judge": "winrate",
            "reads": "answer",
            "details": json.dumps({"prompt": "Name a river.", "category": "koala"}),
        }
        | change
        for number, change in enumerate(changes)
    ]
    build = begin_build(BuildPlan("evaluations", "test/1", {"rows": str(rows)}), root)
    assert not isinstance(build, Artifact)
    with build:
        return build.finish([pl.DataFrame(rows, schema=polars_schema("evaluations"))])


def test_final_answers_of_one_model_and_benchmark(tmp_path: Path) -> None:
    artifact = evaluations(
        tmp_path,
        {},
        {"judge": "rule"},
        {"sample": 1, "response": "Another sample."},
        {"attack": "base64", "response": "Attacked."},
        {"model": "sft@1", "response": "<think>a river</think>The Rhine."},
        {"benchmark": "gsm8k"},
    )
    path = tmp_path / "outputs.json"
    assert export_alpaca_eval(artifact, path, "alpaca_eval", "dpo-1@1234abcd") == 1
    expected = {
        "instruction": "Name a river.",
        "output": "The Nile.",
        "generator": "dpo-1@1234abcd",
        "dataset": "koala",
    }
    assert json.loads(path.read_text()) == [expected]
    assert export_alpaca_eval(artifact, path, "alpaca_eval", "sft@1") == 1
    assert json.loads(path.read_text()) == [expected | {"output": "The Rhine.", "generator": "sft@1"}]


def test_what_can_not_be_exported(tmp_path: Path) -> None:
    several = evaluations(tmp_path, {}, {"benchmark": "gsm8k"}, {"model": "sft@1"})
    path = tmp_path / "outputs.json"
    with pytest.raises(UsageError, match="several benchmarks; choose with --benchmark: alpaca_eval, gsm8k"):
        export_alpaca_eval(several, path)
    with pytest.raises(UsageError, match="several models; choose with --model"):
        export_alpaca_eval(several, path, "alpaca_eval")
    with pytest.raises(UsageError, match="has no benchmark 'x'"):
        export_alpaca_eval(several, path, "x")
    with pytest.raises(UsageError, match="no answers to unattacked prompts"):
        export_alpaca_eval(evaluations(tmp_path, {"attack": "rot13"}), path)
    with pytest.raises(InputError, match="doesn't say its prompt"):
        export_alpaca_eval(evaluations(tmp_path, {"details": None}), path)
    assert not path.exists()
