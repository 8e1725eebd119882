"""Trees to test with: written by hand as (node_id, parent_id, step, is_terminal, reward, evaluations)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import ModelIdentity, Parent

Node = dict[str, Any]
Shape = list[tuple[int, int, str, bool, float, int]]


def new_node(node_id: int, parent_id: int, depth: int, step: str, tokens: int | None) -> Node:
    """A node nobody visited yet."""
    return {
        "node_id": node_id, "parent_id": parent_id, "depth": depth, "step": step, "is_terminal": False, "visits": 0,
        "value_sum": 0.0, "prior": None, "reward": None, "helpfulness": None, "safety": None, "rollouts": [],
        "tokens": tokens,
    }  # fmt: skip


def back_up(nodes: list[Node], at: int, evaluations: int, reward: float) -> None:
    """Add evaluations of a node to it and to all above it."""
    while at >= 0:
        for _ in range(evaluations):
            nodes[at]["visits"] += 1
            nodes[at]["value_sum"] += reward
        at = nodes[at]["parent_id"]


def tree_of(shape: Shape, number: int = 0, tokens: int | None = 3, **columns: Any) -> dict[str, Any]:
    """A tree's row; its prompt is the letter p and a number."""
    nodes = [new_node(0, -1, 0, "", None if tokens is None else 5)]
    for node_id, parent_id, step, is_terminal, reward, evaluations in shape:
        nodes.append(new_node(node_id, parent_id, nodes[parent_id]["depth"] + 1, step, tokens))
        nodes[-1] |= {"is_terminal": is_terminal, "reward": reward if is_terminal else None}
        back_up(nodes, node_id, evaluations, reward)
    prompt = f"p{number}"
    prompt_id = identity.prompt_id(prompt)
    row = {"tree_id": identity.tree_id(prompt_id, 0), "prompt_id": prompt_id, "prompt": prompt, "task": "safety"}
    return {**row, "round": 1, "nodes": nodes, **columns}


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows of trees as a frame of the schema."""
    schema = polars_schema("trees")
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def artifact_of(
    root: Path, rows: list[dict[str, Any]], generator: str = "test/1", models: Sequence[ModelIdentity] = ()
) -> Artifact:
    """Rows of trees as an artifact."""
    parent = Parent(kind="prompts", version="1.0.0", content_hash="0")
    plan = BuildPlan("trees", generator, {"forest": json.dumps(rows)}, parents=[parent], models=[*models])
    build = begin_build(plan, root)
    assert not isinstance(build, Artifact)
    with build:
        return build.finish([frame_of(rows)])
