"""Trees as tables of nodes: read in pieces of bounded size, checked, and unfolded into paths.

A tree is at most some levels deep, so paths are followed level by level, all trees of a piece at once; nothing
here loops over nodes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.formats.parquet import RowGroupEntry, iterate_batches, open_parquet, row_group_entries
from stairdata_schemas.grammar import OUTPUT_CLOSE, STEP_CLOSE
from stairdata_schemas.kinds import VALUE_TOLERANCE
from stairdata_schemas.quarantine import QuarantineRow

if TYPE_CHECKING:
    import pyarrow.parquet as pq

NODES_AT_ONCE = 2**15
BYTES_AT_ONCE = 64 * 1024**2
TREE_COLUMNS = ("tree_id", "prompt_id", "prompt", "task", "actor", "round")
_REQUIRED = ("node_id", "parent_id", "depth", "step", "is_terminal", "visits", "value_sum")
NODE_FIELDS = (*_REQUIRED, "reward", "tokens")
# a terminal node's mean is its reward, without the rounding of a sum
_VALUE = pl.coalesce(pl.when(pl.col("is_terminal")).then(pl.col("reward")), pl.col("value_sum") / pl.col("visits"))
_ABSOLUTE_TOLERANCE = 1e-9
_PIECE = rf"(?s).*?(?:{re.escape(STEP_CLOSE)}|{re.escape(OUTPUT_CLOSE)})|.+"
"""What `grammar.split_steps` cuts a text into."""
STRUCTURE = {
    "nodes|min_length",
    "nodes_have_no_nulls",
    "node_ids_are_dense",
    "first_node_is_the_root",
    "parents_come_first",
}
"""Rules without which nodes are no tree."""
VISITS_ADD_UP = "visits_add_up"
"""Rule that each evaluation of a node that is not terminal has its rollout."""

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Forest(NamedTuple):
    """Some trees: a row a tree, and a row a node.

    `nodes` has besides the nodes' own fields `tree` (the row of its tree), `parent` (the row of its parent; at the
    root its own) and `value` (V; null where unvisited). Rows of nodes are numbered from 0, tree after tree.
    """

    trees: pl.DataFrame
    nodes: pl.DataFrame

    @property
    def parents(self) -> Indices:
        return self.nodes["parent"].to_numpy()

    @property
    def depths(self) -> Indices:
        return self.nodes["depth"].to_numpy()


def read_trees(trees: Artifact, *, rollouts: bool = False) -> Iterator[pl.DataFrame]:
    """Read what pairs are made of, in frames of about 32,000 nodes: no usage, and texts of rollouts only if wanted."""
    for path in trees.data_files:
        with open_parquet(path) as file:
            leaves = _leaf_paths(file)
        columns = [name for name in leaves if _is_needed(name) or (rollouts and _is_text_of_rollout(name))]
        size = _trees_at_once(leaves, row_group_entries(path, len(leaves)))
        for batch in iterate_batches(path, size, columns, piece=BYTES_AT_ONCE):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


def sound_frames(
    trees: Artifact, kind: str, options: BuildOptions, refused: list[QuarantineRow], *, rollouts: bool = False
) -> Iterator[pl.DataFrame]:
    """Yield the sound trees of an artifact, as many as --limit allows; report progress, and note what is refused.

    Args:
        trees: the artifact.
        kind: whose progress it is.
        options: of the build.
        refused: what was refused, added to.
        rollouts: read their texts as well.
    """
    done, total = 0, min(trees.manifest.rows, options.limit or trees.manifest.rows)
    for frame in read_trees(trees, rollouts=rollouts):
        if done >= total:
            return
        wanted = frame.head(total - done)
        sound = sound_trees(wanted, done, trees, refused)
        done += len(wanted)
        if not sound.is_empty():
            yield sound
        options.progress(kind, done, total)


def lacks_tokens(trees: Artifact) -> bool:
    """Tell by the files' statistics whether a node has no `tokens`; files without statistics count as lacking."""
    for path in trees.data_files:
        with open_parquet(path) as file:
            leaves = _leaf_paths(file)
        column = next(index for index, name in enumerate(leaves) if _field(name) == "tokens")
        if any(group.chunks[column].nulls != 0 for group in row_group_entries(path, len(leaves))):
            return True
    return False


def _leaf_paths(file: pq.ParquetFile) -> list[str]:
    return [file.schema.column(index).path for index in range(len(file.schema))]


def _field(path: str) -> str:
    """Return the field of a node that a leaf of the file holds; the rewards of rollouts stand for rollouts."""
    parts = path.split(".")
    if parts[0] != "nodes":
        return ""
    return "rollouts" if "rollouts" in parts and parts[-1] == "reward" else parts[3] if len(parts) == 4 else ""


def _is_needed(path: str) -> bool:
    return path in TREE_COLUMNS or _field(path) in (*NODE_FIELDS, "rollouts")


def _is_text_of_rollout(path: str) -> bool:
    parts = path.split(".")
    return parts[0] == "nodes" and "rollouts" in parts and parts[-1] == "text"


def _trees_at_once(leaves: list[str], groups: list[RowGroupEntry]) -> int:
    column = next(index for index, name in enumerate(leaves) if _field(name) == "node_id")
    widest = max((group.chunks[column].values / max(group.rows, 1) for group in groups), default=1)
    return max(1, int(NODES_AT_ONCE / max(widest, 1)))


def unfold(trees: pl.DataFrame, *, rollouts: bool = False) -> Forest:
    """Return trees as a table of nodes; the trees have to be sound (see `sound_trees`).

    Args:
        trees: a frame of `read_trees`.
        rollouts: the steps of whole rollouts are nodes, too; the frame has their texts.
    """
    nodes = explode_nodes(trees)
    nodes = (_with_rollouts(nodes) if rollouts else nodes).select(*NODE_FIELDS, "tree")
    sizes = np.bincount(nodes["tree"].to_numpy(), minlength=len(trees))
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    parent = np.where(nodes["parent_id"].to_numpy() < 0, start, start + nodes["parent_id"].to_numpy())
    return Forest(
        trees.drop("nodes"),
        nodes.with_columns(
            parent=pl.Series(parent, dtype=pl.Int64),
            value=pl.when(pl.col("visits") > 0).then(_VALUE),
        ),
    )


def _with_rollouts(nodes: pl.DataFrame) -> pl.DataFrame:
    """Append to each tree the steps of its rollouts that end in a whole answer: nodes of one visit, a path each.

    They are numbered on from the tree's last node, by the node that they begin at, by rollout, and by step.

    Args:
        nodes: as `explode_nodes` gives them.
    """
    steps = (
        nodes.select("tree", "node_id", "depth", pl.col("rollouts"))
        .explode("rollouts")
        .drop_nulls("rollouts")
        .unnest("rollouts")
        .filter(pl.col("text").str.ends_with(OUTPUT_CLOSE) & pl.col("reward").is_not_null())
        .with_row_index("rollout")
        .select("tree", "node_id", "depth", "rollout", "reward", step=pl.col("text").str.extract_all(_PIECE))
        .explode("step")
        .with_columns(place=pl.int_range(pl.len()).over("rollout"), last=pl.len().over("rollout") - 1)
        .join(nodes.group_by("tree").agg(size=pl.len()), on="tree", maintain_order="left")
        .with_columns(number=pl.col("size") + pl.int_range(pl.len()).over("tree"))
    )
    is_first, is_last = pl.col("place") == 0, pl.col("place") == pl.col("last")
    added = steps.select(
        node_id="number",
        parent_id=pl.when(is_first).then("node_id").otherwise(pl.col("number") - 1),
        depth=pl.col("depth") + 1 + pl.col("place"),
        step="step",
        is_terminal=is_last,
        visits=pl.lit(1),
        value_sum="reward",
        reward=pl.when(is_last).then("reward"),
        tokens=pl.lit(None),
        tree="tree",
    )
    own = nodes.select(*NODE_FIELDS, "tree")
    return pl.concat([own, added.cast(own.schema)]).sort("tree", "node_id")


def explode_nodes(trees: pl.DataFrame) -> pl.DataFrame:
    """Return one row a node, with `tree`, the row of its tree, and `start`, the row of its root."""
    sizes = trees["nodes"].list.len().to_numpy().astype(np.int64)
    rows = trees.select(pl.col("nodes").explode()).unnest("nodes")
    return rows.with_columns(
        tree=pl.Series(np.repeat(np.arange(len(trees)), sizes), dtype=pl.Int64),
        start=pl.Series(np.repeat(np.cumsum(sizes) - sizes, sizes), dtype=pl.Int64),
    )


def levels(forest: Forest) -> Iterator[Indices]:
    """Yield the rows of the nodes of each depth, the roots first."""
    depths = forest.depths
    order = np.argsort(depths, kind="stable")
    bounds = np.searchsorted(depths[order], np.arange(depths.max(initial=0) + 2))
    for low, high in itertools.pairwise(bounds):
        yield order[low:high]


def path_sums(forest: Forest, lengths: Indices) -> Indices:
    """Add up a figure of each node along its path from the root, the root's and its own included."""
    totals = lengths.astype(np.int64)
    parents = forest.parents
    for depth, rows in enumerate(levels(forest)):
        if depth:
            totals[rows] += totals[parents[rows]]
    return totals


def path_texts(forest: Forest, wanted: Indices) -> pl.Series:
    """Return the texts of paths: the steps from the root to each wanted node, joined."""
    parents, steps = forest.parents, forest.nodes["step"]
    needed = np.zeros(len(forest.nodes), dtype=bool)
    needed[wanted] = True
    by_level = list(levels(forest))
    for rows in reversed(by_level):
        needed[parents[rows[needed[rows]]]] = True
    position = np.zeros(len(forest.nodes), dtype=np.int64)
    texts: list[pl.Series] = []
    total, before = 0, pl.Series(dtype=pl.String)
    for depth, rows in enumerate(by_level):
        kept = rows[needed[rows]]
        own = steps.gather(kept)
        text = before.gather(position[parents[kept]] - (total - len(before))) + own if depth else own
        position[kept] = np.arange(total, total + len(kept))
        texts.append(text)
        total, before = total + len(kept), text
    return pl.concat(texts).gather(position[wanted])


def common_ancestors(forest: Forest, left: Indices, right: Indices) -> Indices:
    """Return the row of the deepest common ancestor of each pair of nodes of one tree, other than the nodes."""
    parents, depths = forest.parents, forest.depths
    first, second = parents[left], parents[right]
    while (apart := first != second).any():
        first_is_deeper = depths[first] >= depths[second]
        second_is_deeper = depths[second] >= depths[first]
        first, second = (
            np.where(apart & first_is_deeper, parents[first], first),
            np.where(apart & second_is_deeper, parents[second], second),
        )
    return first


def sound_trees(trees: pl.DataFrame, first: int, source: Artifact, refused: list[QuarantineRow]) -> pl.DataFrame:
    """Return the trees that hold together, and append the others with the first rule they break.

    A finished artifact was checked when it was written; this is for those that were changed since, or written by
    other programs. Visit sums are checked on trees that were grown here alone: others may have been cut.

    Args:
        trees: a frame of `read_trees`.
        first: number of its first row in the artifact.
        source: the artifact.
        refused: what was refused, added to.
    """
    broken = _broken_rules(trees, grown=source.manifest.generator.startswith("trees/"))
    for number in np.flatnonzero(broken != ""):
        row = trees.row(int(number), named=True)
        raw = json.dumps(row, ensure_ascii=False, default=str)
        refused.append(QuarantineRow(source.reference, first + int(number), str(broken[number]), raw, "nodes"))
    return trees if (broken == "").all() else trees.filter(pl.Series(broken == ""))


def _broken_rules(trees: pl.DataFrame, *, grown: bool) -> npt.NDArray[np.str_]:
    """Return for each tree the name of the first rule it breaks, or an empty string."""
    names = np.full(len(trees), "", dtype="<U48")
    sizes = trees["nodes"].list.len().fill_null(0).to_numpy()
    names[sizes == 0] = "nodes|min_length"
    for rules in (_shape_rules, _number_rules, _sum_rules):
        sound = np.flatnonzero(names == "")
        nodes = explode_nodes(trees[sound])
        for name, is_broken in rules(nodes, grown=grown):
            trees_hit = sound[np.unique(nodes["tree"].to_numpy()[is_broken])]
            names[trees_hit[names[trees_hit] == ""]] = name
    return names


def _shape_rules(nodes: pl.DataFrame, *, grown: bool) -> Iterator[tuple[str, Mask]]:  # noqa: ARG001
    yield "nodes_have_no_nulls", nodes.select(pl.any_horizontal(pl.col(_REQUIRED).is_null())).to_series().to_numpy()
    nodes = nodes.with_columns(pl.col("node_id", "parent_id", "depth").fill_null(0), pl.col("step").fill_null(""))
    start, rows = nodes["start"].to_numpy(), np.arange(len(nodes))
    is_root = rows == start
    number, parent = rows - start, nodes["parent_id"].to_numpy()
    yield "node_ids_are_dense", nodes["node_id"].to_numpy() != number
    depth = nodes["depth"].to_numpy()
    yield "first_node_is_the_root", is_root & ((parent != -1) | (depth != 0) | (nodes["step"] != "").to_numpy())
    yield "parents_come_first", ~is_root & ((parent < 0) | (parent >= number))
    of_parent = depth[np.clip(start + parent, 0, len(nodes) - 1)]
    yield "depth_is_one_below_the_parent", ~is_root & (depth != of_parent + 1)


def _number_rules(nodes: pl.DataFrame, *, grown: bool) -> Iterator[tuple[str, Mask]]:  # noqa: ARG001
    parent = (nodes["start"] + nodes["parent_id"]).to_numpy()[nodes["parent_id"].to_numpy() >= 0]
    has_children = np.bincount(parent, minlength=len(nodes)) > 0
    yield "terminal_nodes_have_no_children", has_children & nodes["is_terminal"].to_numpy()
    visits, total = nodes["visits"].to_numpy(), nodes["value_sum"].to_numpy()
    yield "visits_are_not_negative", visits < 0
    yield "tokens_are_not_negative", (nodes["tokens"].fill_null(0) < 0).to_numpy()
    reward = nodes["reward"].fill_null(0.0).to_numpy()
    yield "values_are_numbers", ~np.isfinite(total) | ~np.isfinite(reward)
    yield "unvisited_nodes_have_no_value", (visits == 0) & (total != 0)


def _sum_rules(nodes: pl.DataFrame, *, grown: bool) -> Iterator[tuple[str, Mask]]:
    visits, total = nodes["visits"].to_numpy(), nodes["value_sum"].to_numpy()
    judged = ((nodes["visits"] > 0) & nodes["is_terminal"] & nodes["reward"].is_not_null()).to_numpy()
    mean = np.divide(total, visits, out=np.zeros(len(nodes)), where=judged)
    reward = nodes["reward"].fill_null(0.0).to_numpy()
    yield "value_is_the_mean", judged & ~is_close(mean, reward)
    if not grown:
        return
    kept = nodes["rollouts"].list.len().fill_null(0).to_numpy()
    yield VISITS_ADD_UP, ~nodes["is_terminal"].to_numpy() & (own_evaluations(nodes) != kept)


def own_evaluations(nodes: pl.DataFrame) -> Indices:
    """Return how often each node was evaluated itself: its visits without those of its children.

    Args:
        nodes: as `explode_nodes` gives them.
    """
    visits = nodes["visits"].to_numpy()
    parent = (nodes["start"] + nodes["parent_id"]).to_numpy()
    inner = nodes["parent_id"].to_numpy() >= 0
    below = np.bincount(parent[inner], weights=visits[inner], minlength=len(nodes))
    own: Indices = visits - below.astype(np.int64)
    return own


def is_close(one: Any, other: Any) -> Any:
    """Return whether values agree to 1e-6 of the larger, or to 1e-9 where both are next to nothing."""
    size = np.maximum(np.abs(one), np.abs(other))
    return np.abs(one - other) <= np.maximum(VALUE_TOLERANCE * size, _ABSOLUTE_TOLERANCE)
