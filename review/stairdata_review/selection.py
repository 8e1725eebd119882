"""Which items go to reviewers, and in which order; a limit takes the first of them.

The order depends on the items and the seed alone, so a round that is pushed again with a higher limit goes on where it
ended.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from stairdata_review.items import PAIR_KINDS, item_ids
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.errors import ArtifactError, ArtifactNotFoundError, UsageError, quote

SELECTIONS = {
    "all": "the order of the artifact",
    "random": "in random order",
    "margin": "the smallest margin first",
    "disagreement": "first where the judge's own ratings contradict the values most",
    "stratified": "in turn from each task and depth, in random order there",
}
FOR_PAIRS = ("margin", "disagreement")


def select(artifact: Artifact, selection: str, limit: int | None, seed: int, root: Path) -> pl.DataFrame:
    """Return `row` and `item_id` of the items to review, in order.

    Args:
        artifact: pairs, trees or structured_cot.
        selection: one of SELECTIONS.
        limit: how many.
        seed: fixes the random orders.
        root: where the trees of the pairs are found, for `disagreement`.

    Raises:
        UsageError: an unknown selection, or one that this kind doesn't have.
        ArtifactNotFoundError: `disagreement` without the trees.
    """
    if selection not in SELECTIONS:
        raise UsageError(f"unknown selection {quote(selection)}; use one of {', '.join(SELECTIONS)}")
    if selection in FOR_PAIRS and artifact.kind not in PAIR_KINDS:
        raise UsageError(
            f"selection {selection} is only for pairs; for {artifact.reference} choose all, random or stratified"
        )
    ids = item_ids(artifact)
    ordered = _ordered(artifact, ids, selection, seed, root).select("row", "item_id")
    return ordered if limit is None else ordered.head(limit)


def _ordered(artifact: Artifact, ids: pl.DataFrame, selection: str, seed: int, root: Path) -> pl.DataFrame:
    if selection == "all":
        return ids
    lots = pl.Series("lot", [_lot(seed, item_id) for item_id in ids["item_id"]], pl.UInt64)
    items = ids.with_columns(lots)
    if selection == "random":
        return items.sort("lot", "item_id")
    if selection == "margin":
        return _with(artifact, items, "margin").sort(pl.col("margin").abs(), "lot", "item_id")
    if selection == "disagreement":
        return _by_disagreement(artifact, items, root)
    stratum = [name for name in ("task", "depth") if name in artifact.scan().collect_schema()]
    items = _with(artifact, items, *stratum)
    turn = items.with_columns(turn=pl.struct("lot", "item_id").rank("ordinal").over(stratum))
    return turn.sort("turn", *stratum, nulls_last=True)


def _lot(seed: int, item_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/selection/{item_id}".encode()).digest()[:8], "big")


def _with(artifact: Artifact, items: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return items.hstack(artifact.scan().select(columns).collect())


def _by_disagreement(artifact: Artifact, items: pl.DataFrame, root: Path) -> pl.DataFrame:
    """Order pairs by how far the margin of their values exceeds that of the judge's ratings of the two nodes alone."""
    ratings = _ratings(parent_trees(artifact, root))
    pairs = _with(artifact, items, "tree_id", "margin", "chosen_node_id", "rejected_node_id")
    for side in ("chosen", "rejected"):
        named = ratings.select("tree_id", pl.col("node_id").alias(f"{side}_node_id"), pl.col("rating").alias(side))
        pairs = pairs.join(named, on=["tree_id", f"{side}_node_id"], how="left", maintain_order="left")
    judged = pl.col("chosen") - pl.col("rejected")
    sign = pl.when(pl.col("margin") < 0).then(-1).otherwise(1)  # a pair that reviewers turned round
    return pairs.with_columns(gap=sign * (pl.col("margin") - judged)).sort(
        "gap", "lot", "item_id", descending=[True, False, False], nulls_last=True
    )


def _ratings(trees: Artifact) -> pl.DataFrame:
    """Return what the judge said of each node's own answers: a terminal node's reward, else its rollouts' mean."""
    nodes = trees.scan().select("tree_id", "nodes").explode("nodes").unnest("nodes")
    own = pl.col("rollouts").list.eval(pl.element().struct.field("reward")).list.mean()
    rating = pl.when("is_terminal").then("reward").otherwise(own)
    return nodes.select("tree_id", "node_id", rating=rating).collect()


def parent_trees(artifact: Artifact, root: Path) -> Artifact:
    """Open the trees that pairs were taken from.

    Raises:
        ArtifactNotFoundError: they are not under the root, or others stand there.
    """
    parents = [parent for parent in artifact.manifest.parents if parent.kind == "trees"]
    for parent in parents:
        try:
            trees = resolve(f"trees@{parent.version}", root)
        except ArtifactError:
            continue
        if trees.manifest.content_hash == parent.content_hash:
            return trees
    named = ", ".join(f"trees@{parent.version}" for parent in parents) or "no trees"
    raise ArtifactNotFoundError(
        f"selection disagreement compares values with the judge's ratings, which are in the trees of "
        f"{artifact.reference} ({named}); they are not under {root}: pull or build them, or use another --select"
    )
