"""The rules of design section 6: which nodes make a pair.

A pair is a row of `chosen` and `rejected` (rows of the forest's nodes) and `granularity`. What a rule removes is
counted in the funnel: first nodes, then ordered pairs of nodes that may be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import polars as pl

from stairdata.generators.pairs.forest import Forest, Indices, Mask
from stairdata.generators.pairs.length_limit import LengthLimit
from stairdata.recipe import PairsSection, PreferencePairsSection, PrmPairsSection
from stairdata.runs.row_sampling import keys_of, numbers_of
from stairdata_schemas.text.visible import VISIBLE

PAIRS_AT_ONCE = 4_000_000
PAIR_SCHEMA = pl.Schema({"chosen": pl.Int64, "rejected": pl.Int64, "granularity": pl.String})


def siblings(forest: Forest, section: PairsSection, funnel: Counter[str], length_limit: LengthLimit) -> pl.DataFrame:
    """Pair children of one parent."""
    nodes = _eligible(forest, section, funnel)
    pairs = _far_apart(forest, nodes, forest.parents[nodes], section, funnel)
    return _short_enough(forest, pairs, length_limit, funnel)


def comparable_nodes(
    forest: Forest, section: PrmPairsSection, funnel: Counter[str], length_limit: LengthLimit
) -> pl.DataFrame:
    """Pair nodes of equal depth in one tree (step), and terminal nodes of any depth (trajectory)."""
    nodes = _eligible(forest, section, funnel)
    tree = forest.nodes["tree"].to_numpy()
    is_terminal = forest.nodes["is_terminal"].to_numpy()
    level = tree[nodes] * (int(forest.depths.max(initial=0)) + 1) + forest.depths[nodes]
    partial = _far_apart(forest, nodes, level, section, funnel, apart=is_terminal)
    ends = nodes[is_terminal[nodes] & section.whole_answers]
    whole = _far_apart(forest, ends, tree[ends], section, funnel).with_columns(granularity=pl.lit("trajectory"))
    return _short_enough(forest, pl.concat([partial, whole]), length_limit, funnel)


def any_answers(
    forest: Forest, section: PreferencePairsSection, funnel: Counter[str], length_limit: LengthLimit
) -> pl.DataFrame:
    """Pair answers of a tree whose rewards lie far enough apart; beyond the paper."""
    nodes = _answers(forest, funnel)
    pairs = _far_apart(forest, nodes, forest.nodes["tree"].to_numpy()[nodes], section, funnel)
    return _short_enough(forest, pairs, length_limit, funnel).with_columns(granularity=pl.lit("trajectory"))


def good_and_bad_answers(
    forest: Forest, section: PreferencePairsSection, funnel: Counter[str], length_limit: LengthLimit, seed: int
) -> pl.DataFrame:
    """Pair good answers of a tree with bad ones: the fewer are repeated, and zipped with the more.

    As published: good are rewards of at least min_chosen_value, bad those of at most min_chosen_value - min_margin;
    both are shuffled; the fewer are repeated int(more / fewer) + 1 times, at most max_repeats times.
    """
    nodes = _answers(forest, funnel)
    funnel["candidates"] += len(nodes)
    value = forest.nodes["value"].to_numpy()
    is_good = value >= section.min_chosen_value
    is_bad = ~is_good & (value <= section.min_chosen_value - section.min_margin)
    nodes = _narrow(nodes, is_good | is_bad, "removed_neither_good_nor_bad", funnel)
    fits = length_limit.fits(forest, nodes)
    funnel["removed_too_long"] += int((~fits).sum())
    nodes = nodes[fits]
    good = _shuffled(forest, nodes[is_good[nodes]], seed, "good")
    bad = _shuffled(forest, nodes[~is_good[nodes]], seed, "bad")
    pairs = _zipped(good, bad, section.max_repeats)
    used = pairs["good"].n_unique() + pairs["bad"].n_unique()
    funnel["removed_without_a_partner"] += len(nodes) - used
    return pairs.select(chosen="good", rejected="bad", granularity=pl.lit("trajectory")).cast(PAIR_SCHEMA)


def _shuffled(forest: Forest, rows: Indices, seed: int, side: str) -> pl.DataFrame:
    """Number the answers of each tree in a seeded order that depends on tree and node alone."""
    nodes = forest.nodes[rows].select("tree", pl.Series(side, rows))
    trees = numbers_of(forest.trees["tree_id"])[nodes["tree"].to_numpy()]
    keys = keys_of(seed, trees, forest.nodes["node_id"].to_numpy()[rows])
    return nodes.with_columns(key=pl.Series(keys)).with_columns(
        place=pl.col("key").rank("ordinal").over("tree").cast(pl.Int64) - 1,
        **{f"n_{side}": pl.len().over("tree").cast(pl.Int64)},
    )


def _zipped(good: pl.DataFrame, bad: pl.DataFrame, max_repeats: int) -> pl.DataFrame:
    counts = good.select("tree", "n_good").unique().join(bad.select("tree", "n_bad").unique(), on="tree")
    fewer, more = pl.min_horizontal("n_good", "n_bad"), pl.max_horizontal("n_good", "n_bad")
    counts = counts.with_columns(
        fewer=fewer,
        length=pl.min_horizontal(more, fewer * pl.min_horizontal(more // fewer + 1, pl.lit(max_repeats))),
        good_repeats=pl.col("n_good") < pl.col("n_bad"),
    )

    def side(frame: pl.DataFrame, other: str, *, repeats: bool) -> pl.DataFrame:
        many = frame.join(counts.filter(pl.col("good_repeats") == repeats), on="tree")
        many = many.filter(pl.col("place") < pl.col("length"))
        few = bad if other == "bad" else good
        partners = few.select("tree", other, partner="place")
        zipped = many.with_columns(partner=pl.col("place") % pl.col("fewer")).join(partners, on=["tree", "partner"])
        return zipped.select("tree", "place", "good", "bad").sort("tree", "place")

    return pl.concat([side(good, "bad", repeats=False), side(bad, "good", repeats=True)])


def _visited(forest: Forest, funnel: Counter[str]) -> Indices:
    """Apply the rules that every node has to keep, whatever it is compared with."""
    nodes = np.flatnonzero(forest.depths > 0)
    funnel["nodes"] += len(nodes)
    nodes = _narrow(nodes, forest.nodes["value"].is_not_null().to_numpy(), "removed_unvisited", funnel)
    blank = forest.nodes["step"].str.contains(VISIBLE)  # the schema takes no side without a visible character
    return _narrow(nodes, blank.to_numpy(), "removed_blank", funnel)


def _answers(forest: Forest, funnel: Counter[str]) -> Indices:
    return _narrow(_visited(forest, funnel), forest.nodes["is_terminal"].to_numpy(), "removed_not_an_answer", funnel)


def _eligible(forest: Forest, section: PairsSection, funnel: Counter[str]) -> Indices:
    enough = forest.nodes["is_terminal"] | (forest.nodes["visits"] >= section.min_visits)
    return _narrow(_visited(forest, funnel), enough.to_numpy(), "removed_too_few_visits", funnel)


def _narrow(nodes: Indices, rule: Mask, name: str, funnel: Counter[str]) -> Indices:
    kept = nodes[rule[nodes]]
    funnel[name] += len(nodes) - len(kept)
    return kept


def _far_apart(
    forest: Forest,
    nodes: Indices,
    group: Indices,
    section: PairsSection,
    funnel: Counter[str],
    apart: Mask | None = None,
) -> pl.DataFrame:
    """Return the ordered pairs of nodes of one group whose values are high and far enough apart.

    Args:
        forest: the trees.
        nodes: rows of the nodes that may be in a pair.
        group: the group of each of them.
        section: the thresholds.
        funnel: counts.
        apart: nodes of which no two make a pair.
    """
    _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
    others = sizes[group] - 1
    if apart is not None:
        both = np.bincount(group, weights=apart[nodes], minlength=len(sizes)).astype(np.int64)
        others -= np.where(apart[nodes], both[group] - 1, 0)
    value = forest.nodes["value"].to_numpy()[nodes]
    is_high = value >= section.min_chosen_value
    sides = pl.DataFrame({"group": group, "node": nodes, "value": value, "alone": _mask(apart, nodes)})
    chosen = sides.with_columns(least=_margins(forest, nodes, section)).filter(pl.Series(is_high))
    found = [_joined(part, sides) for part in _parts(chosen, sizes)]
    pairs = pl.concat(found) if found else pl.DataFrame(schema=PAIR_SCHEMA)
    funnel["candidates"] += int(others.sum())
    funnel["removed_value_too_low"] += int(others[~is_high].sum())
    funnel["removed_margin_too_small"] += int(others[is_high].sum()) - len(pairs)
    return pairs


def _mask(apart: Mask | None, nodes: Indices) -> Mask:
    return np.zeros(len(nodes), dtype=bool) if apart is None else apart[nodes]


def _margins(forest: Forest, nodes: Indices, section: PairsSection) -> pl.Series:
    margins = np.full(len(nodes), section.min_margin)
    for depth, margin in section.min_margin_by_depth.items():
        margins[forest.depths[nodes] == depth] = margin
    return pl.Series(margins)


def _parts(chosen: pl.DataFrame, sizes: Indices) -> Iterator[pl.DataFrame]:
    """Cut the chosen sides so that each part joins to some million pairs at most, however wide a tree is."""
    ends = np.cumsum(sizes[chosen["group"].to_numpy()]) // PAIRS_AT_ONCE
    for start, length in zip(*_runs(ends), strict=True):
        yield chosen.slice(start, length)


def _runs(values: Indices) -> tuple[list[int], list[int]]:
    _, starts, lengths = np.unique(values, return_index=True, return_counts=True)
    return starts.tolist(), lengths.tolist()


def _joined(chosen: pl.DataFrame, sides: pl.DataFrame) -> pl.DataFrame:
    far_apart = pl.col("value") - pl.col("value_rejected") > pl.col("least")
    return (
        chosen.lazy()
        .join(sides.lazy(), on="group", suffix="_rejected")
        .filter(far_apart & ~(pl.col("alone") & pl.col("alone_rejected")))
        .select(chosen="node", rejected="node_rejected", granularity=pl.lit("step"))
        .collect()
    )


def _short_enough(forest: Forest, pairs: pl.DataFrame, length_limit: LengthLimit, funnel: Counter[str]) -> pl.DataFrame:
    """Drop the pairs of which a side is too long; last, so that only what would be used is ever measured."""
    nodes = np.unique(np.concatenate([pairs["chosen"].to_numpy(), pairs["rejected"].to_numpy()]))
    fits = np.zeros(len(forest.nodes), dtype=bool)
    fits[nodes] = length_limit.fits(forest, nodes)
    kept = pairs.filter(pl.Series(fits[pairs["chosen"].to_numpy()] & fits[pairs["rejected"].to_numpy()]))
    funnel["removed_too_long"] += len(pairs) - len(kept)
    return kept
