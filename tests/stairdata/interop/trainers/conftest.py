"""Artifacts to export: answers, pairs and trees, whole and half-written, of texts that want to be escaped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from tests.stairdata.cli.conftest import run  # noqa: F401 - a fixture here, too
from tests.training.conftest import pair_row, sft_row, tiny_model

Rows = list[dict[str, Any]]
MakeArtifact = Callable[[str, Rows], Artifact]
PROMPT = "Who said: \"it's\" 'so'?\n- key: $(touch x) `y` \u2028 {{z}} 👩🏽‍🚀"
"""What YAML, a shell, a template and a file of lines would trip over."""
STEP = "<|Reasoning_step|>\nTitle: {}:\nbody\n<|/Reasoning_step|>"
OUTPUT = "<|Output|>\nFinal Answer:\n{}\n<|/Output|>"


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """A pair under a shared first step: every other one compares terminal steps."""
    values = {"chosen_value": 1.0, "rejected_value": -0.5, "margin": 1.5, "depth": 2, "granularity": "step"}
    nodes = {"chosen_node_id": 2, "rejected_node_id": 3, "chosen_visits": 4, "rejected_visits": 4}
    tree = {"tree_id": identity.tree_id(f"{number:016x}", 0, 0), "task": "safety", "round": 1}
    return pair_row(number) | values | nodes | tree | changes


def response(number: int, *, is_complete: bool = True) -> dict[str, Any]:
    text = sft_row(number)["completion"]
    return {
        "response_id": f"{number:016x}",
        "prompt_id": identity.prompt_id(f"hi {number}"),
        "prompt": f"hi {number}",
        "method": "sample",
        "model": "actor",
        "n": 1,
        "candidates": [{"text": text, "score": None, "is_complete": is_complete, "tokens": 9}],
        "chosen_index": 0,
        "text": text,
        "completion_tokens": 9,
    }


def node(node_id: int, parent_id: int, step: str, value: float, visits: int = 1) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "parent_id": parent_id,
        "depth": {-1: 0, 0: 1}.get(parent_id, 2),
        "step": step,
        "is_terminal": step.endswith("<|/Output|>"),
        "visits": visits,
        "value_sum": value * visits,
        "rollouts": [],
    }


def tree() -> dict[str, Any]:
    """A first step with an answer below it, another first step, and a node that was never visited."""
    nodes = [
        node(0, -1, "", 0.1, 5),
        node(1, 0, STEP.format("A"), 0.5, 2),
        node(2, 0, STEP.format("B"), -1.0, 2),
        node(3, 1, "\n\n" + OUTPUT.format("yes"), 2.0),
        node(4, 1, "\n\n" + OUTPUT.format("no"), 0.0, 0),
    ]
    prompt_id = identity.prompt_id(PROMPT)
    return {"tree_id": identity.tree_id(prompt_id, 0, 0), "prompt_id": prompt_id, "prompt": PROMPT, "nodes": nodes}


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    def make(kind: str, rows: Rows) -> Artifact:
        build = begin_build(BuildPlan(kind, "test/1", {"rows": repr(rows)}), tmp_path / "artifacts")
        assert not isinstance(build, Artifact)
        with build:
            return build.finish([pl.DataFrame(rows, schema=polars_schema(kind))])

    return make


@pytest.fixture
def pairs(make_artifact: MakeArtifact) -> Artifact:
    """Sixteen pairs; those with odd numbers are of whole answers."""
    return make_artifact("preference_pairs", [pair(number) for number in range(16)])


@pytest.fixture
def prm_pairs(make_artifact: MakeArtifact) -> Artifact:
    return make_artifact("prm_pairs", [pair(number) for number in range(16)])


@pytest.fixture
def cot(make_artifact: MakeArtifact) -> Artifact:
    return make_artifact("structured_cot", [sft_row(number) for number in range(8)])


@pytest.fixture(scope="session")
def actors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models with the grammar's tags."""
    root = tmp_path_factory.mktemp("actors")
    return {family: tiny_model(root / family, family, tags=True) for family in ("chatml", "llama3")}
