"""Kind `trees` of searches that the caller ran: trees of `search_tree` as an artifact like any other."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping

import polars as pl

from stairdata.generators.trees.rows import Prompt, tree_counts, tree_row
from stairdata.recipe import Recipe
from stairdata.runs.inputs import input_rows
from stairdata.runs.options import BuildOptions
from stairdata.search import mcts
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, BuildContent, BuildPlan, Report, build_artifact
from stairdata_schemas.errors import UsageError, quote
from stairdata_schemas.kinds import polars_schema

GENERATOR = "custom_trees/1"


def save_custom_trees(
    trees: Mapping[str, mcts.Tree], prompts: Artifact, actor: str, seed: int, options: BuildOptions
) -> Artifact:
    """Write trees by their prompt ids; rows come in the order of the prompts.

    Raises:
        UsageError: no trees, prompts of another kind, or a tree of a prompt that is not among them.
    """
    rows = _rows(trees, prompts, actor, seed)
    told = json.dumps(rows, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    plan = BuildPlan(
        "trees",
        GENERATOR,
        {"actor": actor, "seed": seed},
        parents=[prompts.as_parent()],
        inputs={"trees": hashlib.sha256(told).hexdigest()},
        seeds={"search": seed},
    )

    def content(_: Build) -> BuildContent:
        counts: Counter[str] = Counter()
        for tree in trees.values():
            counts.update(tree_counts(tree))
        notes = ["grown by a policy and a judge of the caller's own: their requests and settings are not known here"]
        return BuildContent(
            [pl.DataFrame(rows, schema=polars_schema("trees"))], report=Report(notes=notes, details=dict(counts))
        )

    return build_artifact(plan, content, options.root, options.version, max_quarantine=options.max_quarantine)


def _rows(trees: Mapping[str, mcts.Tree], prompts: Artifact, actor: str, seed: int) -> list[Row]:
    if prompts.kind != "prompts":
        raise UsageError(f"trees are grown from prompts, not from {prompts.reference}")
    if not trees:
        raise UsageError("there are no trees to save; grow some with stairdata.search_tree")
    recipe, unknown = Recipe(seed=seed), {"iterations": None, "round": None}  # a tree does not tell them
    asked = {row["prompt_id"]: Prompt(**row) for row in input_rows(prompts, list(Prompt._fields), None)}
    strange = next((prompt_id for prompt_id in trees if prompt_id not in asked), None)
    if strange is not None:
        raise UsageError(
            f"{prompts.reference} has no prompt {quote(strange)}; name each tree by the prompt_id of its prompt"
        )
    return [
        tree_row(identity.tree_id(prompt_id, seed), prompt, trees[prompt_id], recipe, actor) | unknown
        for prompt_id, prompt in asked.items()
        if prompt_id in trees
    ]
