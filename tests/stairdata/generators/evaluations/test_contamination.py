"""Prompts that a model has seen: its training data, what that was made from, and the training before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata.generators.evaluations.contamination import seen_in_training
from stairdata_schemas import grammar, identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import Parent
from stairdata_schemas.rendering import model_hash
from tests.stairdata.forests import artifact_of, tree_of

GRAMMATICAL = grammar.render([grammar.Step("T:", "b")], "o")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def prompts(root: Path, *texts: str) -> Artifact:
    rows = [{"prompt_id": identity.prompt_id(text), "prompt": text, "task": "safety", "source": "x"} for text in texts]
    build = begin_build(BuildPlan("prompts", "test/1", {"texts": texts}), root)
    assert not isinstance(build, Artifact)
    with build:
        return build.finish([pl.DataFrame(rows, schema=polars_schema("prompts"))])


def cot(root: Path, text: str, *parents: Parent) -> Artifact:
    row = {
        "prompt_id": identity.prompt_id(text),
        "prompt": text,
        "task": "safety",
        "steps": [{"title": "T:", "body": "b"}],
        "output": "o",
        "completion": GRAMMATICAL,
    }
    build = begin_build(BuildPlan("structured_cot", "test/1", {"text": text}, parents=[*parents]), root)
    assert not isinstance(build, Artifact)
    with build:
        return build.finish([pl.DataFrame([row], schema=polars_schema("structured_cot"))])


def model(folder: Path, data: Any, base: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"of": folder.name}))
    (folder / "model.safetensors").write_bytes(folder.name.encode())
    record = {"data": data.model_dump() if isinstance(data, Parent) else data, "base_model": base}
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def named(folder: Path) -> dict[str, str]:
    return {"name": folder.name, "hash": model_hash(folder)}


def test_data_its_parents_and_the_training_before(tmp_path: Path, root: Path) -> None:
    first = prompts(root, "Is this here?", "And this?")
    data = cot(root, "Written by hand.", first.as_parent())
    tree = artifact_of(
        root, [tree_of([(1, 0, GRAMMATICAL, True, 1.0, 1)], 5)]
    )  # of a prompts artifact that isn't there
    sft = model(tmp_path / "models/sft", data.as_parent(), {"name": "org/base", "revision": "abc"})
    dpo = model(tmp_path / "models/dpo-1", tree.as_parent(), named(sft))
    seen = seen_in_training(dpo, root)
    assert seen.looked_at == ["trees@1.0.0", "structured_cot@1.0.0", "prompts@1.0.0"]
    assert seen.find(identity.prompt_id("And this?"), "And this?") == "prompts@1.0.0"
    assert seen.find("0" * 16, "  is this, HERE") == "prompts@1.0.0"  # the same words
    assert seen.find(identity.prompt_id("Written by hand."), "Written by hand.") == "structured_cot@1.0.0"
    assert seen.find(identity.prompt_id("Is this new?"), "Is this new?") is None
    assert seen.missing == [
        "prompts@1.0.0 of 'dpo-1' is not under the artifacts' root, or damaged there",
        "the training of 'org/base', which 'sft' began with: it is not beside it",
    ]
    own = seen_in_training(sft, root)
    assert own.looked_at == ["structured_cot@1.0.0", "prompts@1.0.0"]


def test_a_start_model_of_the_same_name_is_not_taken_for_the_one(tmp_path: Path, root: Path) -> None:
    data = prompts(root, "A?").as_parent()
    sft = model(tmp_path / "sft", data)
    other = named(sft) | {"hash": "0123456789abcdef"}
    seen = seen_in_training(model(tmp_path / "dpo", data, other), root)
    assert len(seen.missing) == 1
    assert "the folder beside it is another model" in seen.missing[0]
    assert seen.looked_at == ["prompts@1.0.0"]


def test_what_a_folder_without_a_record_or_with_a_broken_one_says(tmp_path: Path, root: Path) -> None:
    bare = model(tmp_path / "bare", None)
    (bare / "training.json").unlink()
    assert seen_in_training(bare, root).missing == ["the training data of 'bare': it has no training.json"]
    for text in ("{", "[1]", '{"data": {"kind": 3}}', '{"data": null}'):
        (bare / "training.json").write_text(text)
        (said,) = seen_in_training(bare, root).missing
        assert said.startswith("the training data of 'bare': training.json")


def test_a_parent_on_the_hub_is_named_with_how_to_fetch_it(tmp_path: Path, root: Path) -> None:
    away = Parent(kind="prompts", version="1.2.0", content_hash="f" * 64, repo="org/prompts", commit="a" * 40)
    data = cot(root, "B?", away)
    path = data.data_files[0]
    path.write_bytes(b"x" * path.stat().st_size)
    seen = seen_in_training(model(tmp_path / "sft", data.as_parent()), root)
    assert seen.looked_at == []
    assert seen.missing[0].startswith("structured_cot@1.0.0 of 'sft' can't be read: ")
    assert seen.missing[1].startswith("prompts@1.2.0 of 'sft' is not under the artifacts' root")
    assert seen.missing[1].endswith(f"; fetch it: `stairdata pull org/prompts@{'a' * 40}`")
