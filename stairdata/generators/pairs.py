"""Kinds `preference_pairs` and `prm_pairs`: pairs of nodes out of trees, by the rules of design section 6.

All in polars, some hundred trees at a time: nodes are unfolded once, their paths are joined together level by
level (a tree is at most some levels deep), and pairs are joins of nodes with nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import polars as pl

from stairdata.generators.options import BuildOptions
from stairdata.recipe import PairsSection, Recipe
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, iterate_frames
from stairdata_schemas.building import BuildPlan, Report, begin_build
from stairdata_schemas.errors import BuildError
from stairdata_schemas.kinds import polars_schema

TREES_AT_ONCE = 256
_GENERATORS = {"preference_pairs": "preference_pairs/1", "prm_pairs": "prm_pairs/1"}
# a terminal node's mean is its reward, without the rounding of a sum
_VALUE = pl.coalesce(pl.when(pl.col("is_terminal")).then(pl.col("reward")), pl.col("value_sum") / pl.col("visits"))
_TREE = ["tree_id", "prompt_id", "prompt", "task", "round"]
_SIDE = ["node_id", "text", "value", "visits", "is_terminal", "depth", "ancestors", "lengths"]


def build_preference_pairs(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Take step pairs for DPO: siblings far enough apart in value.

    Raises:
        BuildError: not one pair; says how many candidates each rule removed.
    """
    return _build("preference_pairs", recipe.preference_pairs, options)


def build_prm_pairs(recipe: Recipe, options: BuildOptions) -> Artifact:
    """Take pairs for the PRM: nodes of equal depth anywhere in a tree, and whole answers.

    Raises:
        BuildError: not one pair; says how many candidates each rule removed.
    """
    return _build("prm_pairs", recipe.prm_pairs, options)


def _build(kind: str, section: PairsSection, options: BuildOptions) -> Artifact:
    trees = options.parent("trees")
    configuration = {**section.model_dump(mode="json"), "limit": options.limit}
    plan = BuildPlan(kind, _GENERATORS[kind], configuration, parents=[trees.as_parent()])
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return build
    with build:
        funnel: Counter[str] = Counter()
        frames = _limited(_pair_frames(kind, section, trees, options, funnel), options.limit)
        first = next(frames, None)
        if first is None:
            raise BuildError(_no_pairs(kind, trees, section, funnel))
        report = Report(details={"funnel": funnel})
        return build.finish(_chain(first, frames), report=report, max_quarantine=options.max_quarantine)


def _chain(first: pl.DataFrame, rest: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    yield first
    yield from rest


def _limited(frames: Iterator[pl.DataFrame], limit: int | None) -> Iterator[pl.DataFrame]:
    left = limit
    for frame in frames:
        taken = frame if left is None else frame.head(left)
        left = None if left is None else left - len(taken)
        if not taken.is_empty():
            yield taken


def _pair_frames(
    kind: str, section: PairsSection, trees: Artifact, options: BuildOptions, funnel: Counter[str]
) -> Iterator[pl.DataFrame]:
    done = 0
    for path in trees.data_files:
        for frame in iterate_frames(path, TREES_AT_ONCE):
            yield pairs_of(kind, frame, section, funnel)
            done += len(frame)
            options.progress(kind, done, trees.manifest.rows)


def pairs_of(kind: str, trees: pl.DataFrame, section: PairsSection, funnel: Counter[str]) -> pl.DataFrame:
    """Return all pairs of a frame of trees, in a fixed order.

    Args:
        kind: preference_pairs or prm_pairs.
        trees: rows of kind `trees`.
        section: the thresholds.
        funnel: counts, added to: nodes left after each rule, pairs of candidates, pairs.
    """
    nodes = _eligible(unfold(trees), section, funnel)
    candidates = _siblings(nodes) if kind == "preference_pairs" else _comparable(nodes)
    far_apart = candidates.filter(
        (pl.col("value") >= section.min_chosen_value)
        & (pl.col("value") - pl.col("value_rejected") > section.min_margin)
    )
    pairs = far_apart.join(trees.lazy().select(_TREE), on="tree_id").pipe(_columns).collect()
    funnel["pairs"] += len(pairs)
    ids = [
        identity.pair_id(*row)
        for row in pairs.select("tree_id", "chosen_node_id", "rejected_node_id", "granularity").iter_rows()
    ]
    schema = polars_schema(kind)
    return pairs.with_columns(pl.Series("pair_id", ids, pl.String)).select(list(schema)).cast(schema)


def unfold(trees: pl.DataFrame) -> pl.DataFrame:
    """Return one row a node, with `value`, the path's `text` and `path_tokens`, its `ancestors` (node ids from the
    root to the node itself) and the `lengths` of their texts in code points.
    """  # noqa: D205
    nodes = (
        trees.lazy()
        .select("tree_id", "nodes")
        .explode("nodes")
        .unnest("nodes")
        .select("tree_id", "node_id", "parent_id", "depth", "step", "is_terminal", "visits", "tokens",
                value=pl.when(pl.col("visits") > 0).then(_VALUE))
        .collect()
    )  # fmt: skip
    level = nodes.filter(pl.col("depth") == 0).with_columns(
        text=pl.lit(""),
        path_tokens=pl.col("tokens").cast(pl.Int64),
        ancestors=pl.concat_list("node_id"),
        lengths=pl.concat_list(pl.lit(0, pl.Int64)),
    )
    levels = [level]
    while not level.is_empty():
        level = _next_level(nodes, level)
        levels.append(level)
    return pl.concat(levels)


def _next_level(nodes: pl.DataFrame, level: pl.DataFrame) -> pl.DataFrame:
    parents = level.select(
        "tree_id",
        pl.col("node_id").alias("parent_id"),
        pl.col("text", "path_tokens", "ancestors", "lengths").name.prefix("parent_"),
    )
    text = pl.col("parent_text") + pl.col("step")
    return nodes.join(parents, on=["tree_id", "parent_id"]).select(
        *nodes.columns,
        text=text,
        path_tokens=pl.col("parent_path_tokens") + pl.col("tokens"),
        ancestors=pl.concat_list("parent_ancestors", "node_id"),
        lengths=pl.concat_list("parent_lengths", text.str.len_chars().cast(pl.Int64)),
    )


def _eligible(nodes: pl.DataFrame, section: PairsSection, funnel: Counter[str]) -> pl.LazyFrame:
    """Apply the rules that look at one node, and count what is left after each."""
    rules = {
        "nodes": pl.col("depth") > 0,
        "nodes_visited": pl.col("visits") > 0,
        "nodes_not_blank": pl.col("step").str.strip_chars() != "",
        "nodes_visited_enough": pl.col("is_terminal") | (pl.col("visits") >= section.min_visits),
        "nodes_short_enough": pl.col("path_tokens").fill_null(0) <= section.max_tokens,
    }
    for name, rule in rules.items():
        nodes = nodes.filter(rule)
        funnel[name] += len(nodes)
    funnel["nodes_valued_enough"] += nodes.filter(pl.col("value") >= section.min_chosen_value).height
    return nodes.lazy()


def _siblings(nodes: pl.LazyFrame) -> pl.LazyFrame:
    sides = nodes.select("tree_id", "parent_id", *_SIDE)
    pairs = sides.join(sides, on=["tree_id", "parent_id"], suffix="_rejected")
    return pairs.with_columns(granularity=pl.lit("step"))


def _comparable(nodes: pl.LazyFrame) -> pl.LazyFrame:
    """Pair nodes of equal depth (step), and terminal nodes of any depth (trajectory)."""
    sides = nodes.select("tree_id", *_SIDE)
    partial = sides.join(sides, on=["tree_id", "depth"], suffix="_rejected").filter(
        ~(pl.col("is_terminal") & pl.col("is_terminal_rejected"))
    )
    ends = sides.filter(pl.col("is_terminal"))
    whole = ends.join(ends, on="tree_id", suffix="_rejected")
    return pl.concat(
        [
            partial.with_columns(granularity=pl.lit("step")),
            whole.with_columns(granularity=pl.lit("trajectory")),
        ],
        how="diagonal",
    )


def _columns(pairs: pl.LazyFrame) -> pl.LazyFrame:
    return pairs.select(
        *_TREE,
        "granularity",
        "depth",
        chosen="text",
        rejected="text_rejected",
        prefix_length=_prefix_length(),
        chosen_value="value",
        rejected_value="value_rejected",
        margin=pl.col("value") - pl.col("value_rejected"),
        chosen_visits="visits",
        rejected_visits="visits_rejected",
        chosen_is_terminal="is_terminal",
        rejected_is_terminal="is_terminal_rejected",
        chosen_node_id="node_id",
        rejected_node_id="node_id_rejected",
    ).sort("tree_id", "chosen_node_id", "rejected_node_id", "granularity")


def _prefix_length() -> pl.Expr:
    """Return the length of the text of the deepest common ancestor.

    Node ids are unique in a tree, so the ancestors that two nodes share are the first ones of both lists.
    """
    shared = pl.col("ancestors").list.set_intersection(pl.col("ancestors_rejected")).list.len()
    return pl.col("lengths").list.get(shared.cast(pl.Int64) - 1)


def _no_pairs(kind: str, trees: Artifact, section: PairsSection, funnel: Counter[str]) -> str:
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in funnel.items())
    return (
        f"not one pair for {kind} in {trees.reference} ({trees.manifest.rows} trees): {counts}. Lower "
        f"{kind}.min_margin ({section.min_margin}), {kind}.min_chosen_value ({section.min_chosen_value}) or "
        f"{kind}.min_visits ({section.min_visits}), or grow trees with more iterations"
    )
