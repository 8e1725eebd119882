"""Selection of pairs beyond the paper: off by default, each an option of its own.

In this order: prompts held out; inside a tree the step grammar, near duplicates, caps a depth and a tree; across
trees a cap a prompt, and balance between the tasks. Samples are seeded and don't depend on shards or batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from stairdata.generators.pairs.forest import Forest, Indices, Mask
from stairdata.recipe import PairsSection
from stairdata.runs.row_sampling import keys_of, numbers_of, share_of
from stairdata.runs.row_spool import RowSpool
from stairdata_schemas import grammar
from stairdata_schemas.errors import BuildError
from stairdata_schemas.kinds import TASKS
from stairdata_schemas.text.words import words


def in_part(trees: pl.DataFrame, section: PairsSection, seed: int, funnel: Counter[str]) -> pl.DataFrame:
    """Keep the trees whose prompts are in the section's part of the hold-out split."""
    if not section.hold_out:
        return trees
    wanted = section.part == "held_out"
    keep = [(share_of(seed, "hold_out", each) < section.hold_out) == wanted for each in trees["prompt_id"]]
    funnel["removed_trees_of_the_other_part"] += keep.count(False)
    return trees.filter(pl.Series(keep, dtype=pl.Boolean))


def inside_trees(
    forest: Forest, pairs: pl.DataFrame, section: PairsSection, seed: int, funnel: Counter[str]
) -> pl.DataFrame:
    """Select among the pairs of each tree."""
    if section.grammatical:
        pairs = _count(pairs, _is_grammatical(forest, pairs), "removed_not_grammatical", funnel)
    if section.max_similarity is not None:
        pairs = _count(pairs, ~_near_duplicates(forest, pairs, section.max_similarity), "removed_similar", funnel)
    for name, cap, columns in (
        ("removed_over_cap_of_depth", section.max_per_depth, ["tree", "granularity", "depth"]),
        ("removed_over_cap_of_tree", section.max_per_tree, ["tree"]),
    ):
        if cap is not None:
            groups = pairs.with_columns(
                tree=forest.nodes["tree"].gather(pairs["chosen"]),
                depth=forest.nodes["depth"].gather(pairs["chosen"]),
                key=pl.Series(_keys(forest, pairs, seed)),
            )
            place = groups.select(pl.col("key").rank("ordinal").over(columns)).to_series()
            pairs = _count(pairs, (place <= cap).to_numpy(), name, funnel)
    return pairs


def _count(pairs: pl.DataFrame, keep: Mask, name: str, funnel: Counter[str]) -> pl.DataFrame:
    kept = pairs.filter(pl.Series(keep, dtype=pl.Boolean))
    funnel[name] += len(pairs) - len(kept)
    return kept


def _keys(forest: Forest, pairs: pl.DataFrame, seed: int) -> npt.NDArray[np.uint64]:
    chosen, rejected = pairs["chosen"].to_numpy(), pairs["rejected"].to_numpy()
    trees = numbers_of(forest.trees["tree_id"])[forest.nodes["tree"].to_numpy()[chosen]]
    node_ids = forest.nodes["node_id"].to_numpy()
    kind = (pairs["granularity"] == "trajectory").to_numpy()
    return keys_of(seed, trees, node_ids[chosen], node_ids[rejected], kind)


def _is_grammatical(forest: Forest, pairs: pl.DataFrame) -> Mask:
    chosen, place = np.unique(pairs["chosen"].to_numpy(), return_inverse=True)
    nodes = forest.nodes[chosen]
    steps = zip(nodes["step"], nodes["depth"], strict=True)
    sound = np.array([grammar.is_block(step, is_first=depth == 1) for step, depth in steps], dtype=bool)
    return sound[place]


def _near_duplicates(forest: Forest, pairs: pl.DataFrame, limit: float) -> Mask:
    """Return which pairs are near one of larger margin in their tree; of equal margins the first one counts as larger.

    Whether that other pair is dropped itself makes no difference, so the result needs no order of removal.
    """
    near = np.zeros(len(pairs), dtype=bool)
    chosen, rejected = pairs["chosen"].to_numpy(), pairs["rejected"].to_numpy()
    value = forest.nodes["value"].to_numpy()
    order = np.lexsort((pairs["granularity"].to_numpy(), rejected, chosen, -(value[chosen] - value[rejected])))
    tree = forest.nodes["tree"].to_numpy()[chosen]
    for each in np.unique(tree):
        rows = order[tree[order] == each]
        near[rows] = _near_an_earlier(forest, chosen[rows], rejected[rows], limit)
    return near


def _near_an_earlier(forest: Forest, chosen: Indices, rejected: Indices, limit: float) -> Mask:
    nodes = np.unique(np.concatenate([chosen, rejected]))
    alike = _similarity(forest.nodes["step"].gather(nodes).to_list()) >= limit
    first, second = np.searchsorted(nodes, chosen), np.searchsorted(nodes, rejected)
    place = np.arange(len(chosen))
    best = np.full(alike.shape, len(chosen))
    best[first[::-1], second[::-1]] = place[::-1]  # of a pair that is there twice the first place stays
    best = np.stack([best[row].min(axis=0) for row in alike])  # over chosen steps like that one,
    best = np.stack([best[:, row].min(axis=1) for row in alike], axis=1)  # and rejected ones
    near: Mask = best[first, second] < place
    return near


def _similarity(texts: list[str]) -> npt.NDArray[np.float64]:
    """Return the Jaccard index of the word sets of each two texts; 1 for two texts without words."""
    known = [set(words(text)) for text in texts]
    number = {word: index for index, word in enumerate(sorted(set().union(*known)))}
    has = np.zeros((len(texts), len(number)), dtype=np.float32)
    for row, each in enumerate(known):
        has[row, [number[word] for word in each]] = 1
    shared = (has @ has.T).astype(np.float64)
    sizes = has.sum(axis=1, dtype=np.float64)
    union = sizes[:, None] + sizes - shared
    similarity: npt.NDArray[np.float64] = np.divide(shared, union, out=np.ones_like(shared), where=union > 0)
    return similarity


def across_trees(
    frames: Iterator[pl.DataFrame], section: PairsSection, seed: int, work: Path, funnel: Counter[str]
) -> Iterator[pl.DataFrame]:
    """Select among all pairs: a cap a prompt, and balance between the tasks.

    Raises:
        BuildError: balance is asked for, and a task has no pair.
    """
    if section.max_per_prompt is None and not section.balance:
        yield from frames
        return
    with RowSpool(work / "spool") as spool:
        if spool.fill(frames):
            yield from spool.rows(_chosen(spool, section, seed, funnel)["row"])


def _chosen(spool: RowSpool, section: PairsSection, seed: int, funnel: Counter[str]) -> pl.DataFrame:
    pairs = spool.columns("pair_id", "prompt_id", "task")
    pairs = pairs.with_columns(key=pl.Series(keys_of(seed, numbers_of(pairs["pair_id"]))))
    if section.max_per_prompt is not None:
        place = pairs.select(pl.col("key").rank("ordinal").over("prompt_id")).to_series()
        pairs = _count(pairs, (place <= section.max_per_prompt).to_numpy(), "removed_over_cap_of_prompt", funnel)
    return _balanced(pairs, section, funnel) if section.balance else pairs


def _balanced(pairs: pl.DataFrame, section: PairsSection, funnel: Counter[str]) -> pl.DataFrame:
    counts = dict(pairs.filter(pl.col("task").is_not_null())["task"].value_counts().iter_rows())
    if missing := [task for task in TASKS if task not in counts]:
        other_rule = "set trajectory_rule: margin, " if section.by_thresholds else ""
        raise BuildError(
            f"balance is impossible: no pair has the task {' or '.join(missing)} ({len(pairs)} pairs in all); build "
            f"from trees of both tasks, {other_rule}or leave balance out"
        )
    place = pairs.select(pl.col("key").rank("ordinal").over("task")).to_series()
    keep = pairs["task"].is_not_null() & (place <= min(counts.values()))
    return _count(pairs, keep.to_numpy(), "removed_to_balance", funnel)
