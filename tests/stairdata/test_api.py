"""The public Python API: its names are pinned, nothing heavy is imported, and it does what the command line does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stairdata
from stairdata_schemas.errors import RecipeError, UsageError
from tests.test_docs import blocks

NAMES = [
    "Artifact",
    "best_of",
    "best_of_curve",
    "build",
    "join",
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
    with pytest.raises(UsageError, match="rejudge rates trees again, and 'responses' is to be built"):
        stairdata.build("responses", {}, root=tmp_path, rejudge="trees")
    with pytest.raises(UsageError, match="'prm-pairs' asks no models; leave endpoints out"):
        stairdata.build("prm-pairs", {}, root=tmp_path, endpoints=["http://a/v1"])
    with pytest.raises(UsageError, match="--endpoints teacher: build trees asks no model of that role"):
        stairdata.build("trees", {}, root=tmp_path, endpoints={"actor": ["http://a/v1"], "teacher": ["http://b/v1"]})
    with pytest.raises(UsageError, match="--endpoints: 'http://a/v1' is given twice"):
        stairdata.build("trees", {}, root=tmp_path, endpoints=["http://a/v1", "http://a/v1"])
    with pytest.raises(UsageError, match="'prm-pairs' asks no models"):
        stairdata.build("prm-pairs", {}, root=tmp_path, shard="1/2")
    with pytest.raises(UsageError, match="no dataset on the Hub"):
        stairdata.pull("nowhere", tmp_path)


def test_shards_are_built_joined_and_judged_again(
    actor_section: dict[str, Any], waits: list[float], tmp_path: Path
) -> None:
    source = tmp_path / "p.jsonl"
    source.write_text("".join(f'{{"prompt": "Question {number}?", "task": "safety"}}\n' for number in range(4)))
    recipe: dict[str, Any] = {
        "prompts": {"sources": [{"path": str(source)}]},
        "actor": {**actor_section, "max_model_len": 1024},
        "trees": {"iterations": 2, "samples": 2, "max_tokens": 32, "rollout_tokens": 32},
    }
    stairdata.build("prompts", recipe, root=tmp_path)
    shards = [stairdata.build("trees", recipe, root=tmp_path, shard=f"{index}/2") for index in (1, 2)]
    trees = stairdata.join(shards, tmp_path)
    assert trees.manifest.rows == 4
    assert stairdata.build("trees", recipe, root=tmp_path).reference == trees.reference
    by_rule = recipe | {"trees": recipe["trees"] | {"judge": {"kind": "reference"}}}
    judged = stairdata.build("trees", by_rule, root=tmp_path, rejudge=trees)
    assert judged.manifest.parents[0].content_hash == trees.manifest.content_hash
    judge = {"kind": "endpoint", "endpoint": {"model": "actor"}}
    servers = {"judge": [actor_section["base_url"]]}
    by_model = recipe | {"trees": recipe["trees"] | {"judge": judge}}
    judged = stairdata.build("trees", by_model, root=tmp_path, rejudge=trees, endpoints=servers)
    assert judged.manifest.models[0].name == "actor"
