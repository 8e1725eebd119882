"""The public Python API: its names are pinned, nothing heavy is imported, and it does what the command line does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import stairdata
from stairdata_schemas.errors import RecipeError, UsageError
from tests.test_docs import blocks

NAMES = [
    "Artifact",
    "best_of",
    "best_of_curve",
    "build",
    "lineage",
    "load_recipe",
    "open_artifact",
    "pull",
    "push",
    "save_trees",
    "search_tree",
    "validate",
]
HEAVY = ("torch", "transformers", "vllm", "trl", "datasets", "argilla", "polars", "openai")
PAGE = Path(__file__).parent.parent.parent / "docs" / "python.md"


def test_the_public_names_are_these() -> None:
    assert sorted(stairdata.__all__) == NAMES
    assert dir(stairdata) == NAMES
    for name in NAMES:
        assert getattr(stairdata, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'grow'"):
        stairdata.grow  # noqa: B018 - reading it is what is tested


def test_importing_it_imports_nothing_heavy() -> None:
    code = f"import sys, stairdata; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_page_runs(tmp_path: Path) -> None:
    """Each block goes on from those before it, in an empty folder."""
    code = "\n".join(blocks(PAGE, "python"))
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "prompts@1.0.0 2" in ended.stdout
    assert "nodes;" in ended.stdout


def test_every_public_name_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in page] == []


def test_a_recipe_out_of_a_mapping_names_its_mistakes() -> None:
    with pytest.raises(RecipeError, match="unknown key 'promts'; did you mean 'prompts'"):
        stairdata.load_recipe({"promts": {}})
    with pytest.raises(UsageError, match="overrides go with a recipe file"):
        stairdata.load_recipe({}, ["seed=1"])
    assert stairdata.load_recipe(overrides=["seed=7"]).seed == 7
    assert stairdata.load_recipe("stair-20k").prompts.sources


def test_artifacts_are_inputs(tmp_path: Path) -> None:
    source = tmp_path / "p.jsonl"
    source.write_text('{"prompt": "Why?", "task": "safety"}\n')
    prompts = stairdata.build("prompts", {"prompts": {"sources": [{"path": str(source)}]}}, root=tmp_path)
    with pytest.raises(UsageError, match="needs an input of kind trees"):
        stairdata.build("preference-pairs", {}, root=tmp_path, inputs=[prompts])
    with pytest.raises(UsageError, match="can't build 'tree'; did you mean 'trees'"):
        stairdata.build("tree", {}, root=tmp_path)
    with pytest.raises(UsageError, match="no dataset on the Hub"):
        stairdata.pull("nowhere", tmp_path)
