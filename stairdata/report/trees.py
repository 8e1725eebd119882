"""One tree, seen: what its nodes are worth, which are safe, and which path is best."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from stairdata.generators.pairs.forest import STRUCTURE, sound_trees
from stairdata_schemas import grammar
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import ArtifactError, ArtifactNotFoundError, UsageError, quote
from stairdata_schemas.quarantine import QuarantineRow

SHORTEST_PREFIX = 4
TITLE_LENGTH = 60


class NodeFacts(NamedTuple):
    """What is shown of a node beside its text."""

    value: float | None
    safe: int
    """Evaluations at and below the node that were judged safe."""
    unsafe: int
    is_best: bool
    """The node is on the best path."""

    @property
    def safety(self) -> str:
        """Return whether what was evaluated at and below the node is safe."""
        if not self.safe + self.unsafe:
            return "unknown"
        if self.safe and self.unsafe:
            return f"{self.safe} of {self.safe + self.unsafe} safe"
        return "safe" if self.safe else "unsafe"


def find_tree(trees: Artifact, tree_id: str) -> Row:
    """Return a tree's row by its id or the beginning of it.

    Raises:
        UsageError: not an artifact of trees, or a beginning that several ids have.
        ArtifactNotFoundError: no such tree.
        ArtifactError: its nodes are no tree.
    """
    if trees.kind != "trees":
        raise UsageError(f"{trees.reference} has no trees; name an artifact of kind trees")
    if len(tree_id) < SHORTEST_PREFIX:
        raise UsageError(f"{quote(tree_id)} is too short for a tree_id; give at least {SHORTEST_PREFIX} characters")
    ids = trees.scan().select("tree_id").filter(pl.col("tree_id").str.starts_with(tree_id)).head(3).collect()
    if len(ids) > 1:
        raise UsageError(f"several trees begin with {quote(tree_id)}: {', '.join(ids['tree_id'])}; give more of it")
    if ids.is_empty():
        some = ", ".join(trees.scan().select("tree_id").head(3).collect()["tree_id"])
        raise ArtifactNotFoundError(f"no tree {quote(tree_id)} in {trees.reference}; there are, among others, {some}")
    found = trees.scan().filter(pl.col("tree_id") == ids["tree_id"][0]).head(1).collect()
    refused: list[QuarantineRow] = []
    sound_trees(found, 0, trees, refused)
    if refused and refused[0].rule in STRUCTURE:
        raise ArtifactError(
            f"tree {quote(ids['tree_id'][0])} of {trees.reference} can't be drawn: it breaks the rule "
            f"{refused[0].rule}; see `stairdata validate {trees.reference}`"
        )
    return found.to_dicts()[0]


def look(nodes: list[Row]) -> list[NodeFacts]:
    """Return what is to be seen of each node; parents come before their children."""
    counts = [_own_verdicts(node) for node in nodes]
    for node in reversed(nodes):
        if node["parent_id"] >= 0:
            parent = counts[node["parent_id"]]
            counts[node["parent_id"]] = (parent[0] + counts[node["node_id"]][0], parent[1] + counts[node["node_id"]][1])
    best = best_path(nodes)
    return [NodeFacts(value_of(node), *counts[node["node_id"]], node["node_id"] in best) for node in nodes]


def value_of(node: Row) -> float | None:
    """Return V: a terminal node's reward, else its mean; None where unvisited."""
    if not node["visits"]:
        return None
    if node["is_terminal"] and node["reward"] is not None:
        return float(node["reward"])
    return float(node["value_sum"] / node["visits"])


def _own_verdicts(node: Row) -> tuple[int, int]:
    """Count a node's own evaluations as (safe, unsafe); where no safety is kept the reward's sign says it."""
    judged = [node] * (node["visits"] if node["is_terminal"] else 0) + list(node["rollouts"] or [])
    signs = [each["reward"] if each["safety"] is None else each["safety"] for each in judged]
    return sum(sign is not None and sign > 0 for sign in signs), sum(sign is not None and sign <= 0 for sign in signs)


def visits_of(node: Row) -> str:
    """Return how often a node was visited."""
    return "1 visit" if node["visits"] == 1 else f"{node['visits']} visits"


def best_path(nodes: list[Row]) -> set[int]:
    """Follow the child of highest value from the root to a leaf."""
    children: dict[int, list[Row]] = {}
    for node in nodes:
        if node["visits"]:
            children.setdefault(node["parent_id"], []).append(node)
    path, at = {0}, 0
    while at in children:
        at = max(children[at], key=lambda node: (value_of(node), node["visits"], -node["node_id"]))["node_id"]
        path.add(at)
    return path


def title_of(node: Row) -> str:
    """Return a step's title, or what it begins with, on one line."""
    if node["parent_id"] < 0:
        return "the prompt"
    step = node["step"].strip()
    title = grammar.step_title(step)
    if not title and grammar.OUTPUT_OPEN in step:
        title = f"Answer: {grammar.final_answer(step)}"
    title = " ".join((title or step or "(nothing)").split())
    return title if len(title) <= TITLE_LENGTH else title[:TITLE_LENGTH] + "…"
