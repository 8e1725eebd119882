"""Parents are found by kind and content: artifacts of two kinds may hold the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from stairdata.generators.evaluations.contamination import seen_in_training
from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.hub.lineage import lineage, local_artifacts
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import open_artifact
from tests.stairdata.forests import artifact_of
from tests.stairdata.generators.pairs.test_selection import forest_of_prompts


def test_artifacts_of_two_kinds_with_the_same_bytes_are_both_found(tmp_path: Path) -> None:
    artifact_of(tmp_path, forest_of_prompts(8, ["safety"], trees_each=1))
    section = {"min_visits": 1, "min_margin": 0.0, "min_chosen_value": 0.0}
    recipe = Recipe.model_validate({"preference_pairs": section})
    pairs = build_preference_pairs(recipe, BuildOptions(root=tmp_path))
    folder = tmp_path / "prm_pairs" / "1.0.0"
    shutil.copytree(pairs.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"kind": "prm_pairs"}))
    made = [pairs, open_artifact(folder)]
    assert {each.reference for each in local_artifacts(tmp_path).values()} == {
        "trees@1.0.0", "preference_pairs@1.0.0", "prm_pairs@1.0.0"
    }  # fmt: skip
    for artifact in made:
        assert lineage(artifact, tmp_path).parents[0].found
        model = tmp_path / "models" / artifact.kind
        model.mkdir(parents=True)
        (model / "training.json").write_text(json.dumps({"data": artifact.as_parent().model_dump(mode="json")}))
        assert seen_in_training(model, tmp_path).looked_at == [artifact.reference, "trees@1.0.0"]
