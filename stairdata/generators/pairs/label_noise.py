"""How far the order of a pair can be trusted: nodes of few visits have values that another search would not repeat.

A node's value is a mean over visits. The values of the children of one node are draws from what one visit of it gives,
so a one-way analysis of variance of these draws tells the variance of a single visit from the variance between nodes of
equal depth in one tree (Searle, Casella and McCulloch, Variance Components, 1992, section 3.6; of unequal sizes). Their
share is the reliability of one visit, an intraclass correlation. From it comes how many pairs are ordered as the true
values are, if both spreads were normal. No model that is trained to rank such pairs can be right in more of them, but
by luck, or by learning the noise.

The search visits promising nodes more often, and rewards of -1 and 1 are not normal: these are estimates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import polars as pl

from stairdata.generators.pairs.forest import Forest, read_trees, unfold
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact

UNKNOWN_TASK = "unknown"
BLOCKS = 20
"""Of trees, left out one after the other for intervals (a delete-a-group jackknife)."""
LEVEL = 0.95
MORE_VISITS = "more trees.iterations and a higher min_visits make it more"
_DIGITS = 4


@dataclass(slots=True)
class ValueSpread:
    """Sums of squares of the values of nodes, added up tree by tree."""

    within: float = 0.0
    within_freedom: int = 0
    between: float = 0.0
    between_freedom: int = 0
    weight: float = 0.0
    """Sum over groups of N - sum(n^2) / N: how often the variance between nodes is in `between`."""

    def __add__(self, other: ValueSpread) -> ValueSpread:
        """Pool two sums."""
        return ValueSpread(
            self.within + other.within,
            self.within_freedom + other.within_freedom,
            self.between + other.between,
            self.between_freedom + other.between_freedom,
            self.weight + other.weight,
        )

    @property
    def single_visit(self) -> float | None:
        """The variance of the value of one visit, around the node's true value."""
        return self.within / self.within_freedom if self.within_freedom else None

    @property
    def between_nodes(self) -> float | None:
        """The estimated variance of true values of nodes of equal depth in one tree; chance may bring it below 0."""
        noise = self.single_visit
        if noise is None or not self.weight:
            return None
        return (self.between - self.between_freedom * noise) / self.weight


def reliability(own: float, noise: float) -> float | None:
    """Return the share of a one-visit value's variance that is the node's own, 0 to 1; None without any variance.

    Args:
        own: variance between nodes; below 0 counts as 0.
        noise: variance of a single visit.
    """
    own = max(0.0, own)
    return own / (own + noise) if own + noise > 0 else None


def chance_of_order(margin: float, inverse_visits: float, own: float, noise: float) -> float:
    """Return how probable it is that a pair is ordered as the true values of its nodes are, 0.5 to 1.

    Args:
        margin: the chosen side's value less the rejected side's, above 0.
        inverse_visits: 1 / visits of both sides added up; of a whole answer 0, since its reward is its value.
        own: variance between nodes; below 0 counts as 0.
        noise: variance of a single visit.
    """
    error, spread = noise * inverse_visits, 2 * max(0.0, own)
    if error == 0:
        return 1.0
    if spread == 0:
        return 0.5
    # the true difference, given the one that was seen, is normal around margin * spread / (spread + error)
    return NormalDist().cdf(margin * sqrt(spread / (error * (spread + error))))


class Component(NamedTuple):
    """The variance between the nodes of a task, as an estimate with an interval that holds 95%."""

    value: float
    low: float
    high: float
    noise: float
    """The variance of a single visit."""


class OrderShare(NamedTuple):
    """An estimated share, and what it is at the ends of the interval of the variance between nodes."""

    value: float
    low: float
    high: float

    def as_json(self) -> Json:
        """Return what a manifest keeps."""
        return {name: round(value, _DIGITS) for name, value in self._asdict().items()}


@dataclass(slots=True)
class LabelNoise:
    """The spread of values by task, and the pairs whose order depends on it."""

    trees: int = 0
    spreads: dict[tuple[str, int], ValueSpread] = field(default_factory=dict)
    """By task and block of trees."""
    pairs: Counter[tuple[str, float, float]] = field(default_factory=Counter)
    """How many there are of a task, a margin to 0.02, and inverse visits to two digits."""

    def add_trees(self, forest: Forest) -> None:
        """Add the values of some trees."""
        draws = _draws(forest, self.trees)
        self.trees += len(forest.trees)
        group = ("task", "block", "tree", "level")
        nodes = draws.group_by(*group, "parent").agg(
            n=pl.len().cast(pl.Float64),
            mean=pl.col("value").mean(),
            squares=(pl.col("value") - pl.col("value").mean()).pow(2).sum(),
        )
        n, mean = pl.col("n"), pl.col("mean")
        groups = (
            nodes.filter(n > 1)
            .group_by(group)
            .agg(
                nodes=pl.len().cast(pl.Int64),
                within=pl.col("squares").sum(),
                within_freedom=(n - 1).sum().cast(pl.Int64),
                between=(n * (mean - (n * mean).sum() / n.sum()).pow(2)).sum(),
                weight=n.sum() - n.pow(2).sum() / n.sum(),
            )
        )
        names = ("within", "within_freedom", "between", "between_freedom", "weight")
        sums = (
            groups.with_columns(between_freedom=pl.col("nodes") - 1).group_by("task", "block").agg(pl.col(names).sum())
        )
        for task, block, *found in sums.select("task", "block", *names).sort("task", "block").iter_rows():
            self.spreads[task, block] = self.spreads.get((task, block), ValueSpread()) + ValueSpread(*found)

    def add_pairs(self, pairs: pl.DataFrame) -> None:
        """Add pairs, but those that reviewers turned round, whose order doesn't come of values."""
        sides = [
            pl.when(pl.col(f"{side}_is_terminal")).then(0.0).otherwise(1 / pl.col(f"{side}_visits"))
            for side in ("chosen", "rejected")
        ]
        cells = (
            pairs.filter(pl.col("margin") > 0)
            .group_by(
                task=pl.col("task").fill_null(UNKNOWN_TASK),
                margin=(pl.col("margin") / 2).round(2) * 2,
                inverse_visits=pl.sum_horizontal(sides).round_sig_figs(2),
            )
            .len()
        )
        for task, margin, inverse_visits, count in cells.iter_rows():
            self.pairs[task, margin, inverse_visits] += count

    def component(self, task: str) -> Component | None:
        """Estimate the variance between nodes; None where fewer blocks of trees than there are can tell it."""
        blocks = {block: each for (name, block), each in self.spreads.items() if name == task}
        pooled = sum(blocks.values(), ValueSpread())
        value, noise = pooled.between_nodes, pooled.single_visit
        left_out = [
            sum((each for other, each in blocks.items() if other != block), ValueSpread()).between_nodes
            for block in blocks
        ]
        known = [each for each in left_out if each is not None]
        if value is None or noise is None or len(known) < BLOCKS // 2:
            return None
        mean = sum(known) / len(known)
        error = sqrt((len(known) - 1) / len(known) * sum((each - mean) ** 2 for each in known))
        reach = NormalDist().inv_cdf(0.5 + LEVEL / 2) * error
        return Component(value, value - reach, value + reach, noise)

    def share_in_order(self, task: str | None = None) -> OrderShare | None:
        """Return the share of pairs that are ordered as the true values are; None where that can't be told.

        Args:
            task: whose pairs; all of them by default.
        """
        counts = {cell: count for cell, count in self.pairs.items() if task in (None, cell[0])}
        components = {name: self.component(name) for name in {name for name, _, _ in counts}}
        total, sums = sum(counts.values()), [0.0, 0.0, 0.0]
        for (name, margin, inverse_visits), count in counts.items():
            component = components[name]
            if component is None:
                return None
            for place, own in enumerate(component[:3]):
                sums[place] += count * chance_of_order(margin, inverse_visits, own, component.noise)
        return OrderShare(*(each / total for each in sums)) if total else None

    def as_json(self) -> Json:
        """Return what a manifest keeps: the share of pairs in order, and by task that and the spread of values."""
        tasks = sorted({name for name, _, _ in self.pairs})
        return {"share_in_order": _noted(self.share_in_order()), "tasks": {task: self._of_task(task) for task in tasks}}

    def _of_task(self, task: str) -> Json:
        found = self.component(task)
        if found is None:
            return {"share_in_order": None, "single_visit": None, "reliability": None}
        ends = [reliability(own, found.noise) for own in found[:3]]
        shown = None if None in ends else OrderShare(*(each or 0.0 for each in ends))
        return {
            "share_in_order": _noted(self.share_in_order(task)),
            "single_visit": round(found.noise, _DIGITS),
            "reliability": _noted(shown),
        }


def _noted(share: OrderShare | None) -> Json | None:
    return None if share is None else share.as_json()


def _draws(forest: Forest, before: int) -> pl.DataFrame:
    """Return the values of nodes' own evaluations, each a draw from what one visit of the node's parent gives.

    Children of roots are left out: there is one root a tree, and nothing to compare it with.

    Args:
        forest: some trees.
        before: trees that came before them.
    """
    parents, depths = forest.parents, forest.depths
    inner = depths > 0
    visits = forest.nodes["visits"].to_numpy().astype(np.float64)
    total = np.nan_to_num(forest.nodes["value"].to_numpy().astype(np.float64)) * visits
    below = [np.bincount(parents[inner], weights=each[inner], minlength=len(parents)) for each in (visits, total)]
    own_visits, own_total = visits - below[0], total - below[1]
    rows = np.flatnonzero((depths > 1) & (own_visits > 0))
    trees = forest.nodes["tree"].to_numpy()[rows]
    return pl.DataFrame(
        {
            "task": forest.trees["task"].fill_null(UNKNOWN_TASK).gather(trees),
            "block": (trees + before) % BLOCKS,
            "tree": trees,
            "level": depths[rows],
            "parent": parents[rows],
            "value": own_total[rows] / own_visits[rows],
        }
    )


def noise_note(share: OrderShare) -> str:
    """Return in words what a share of pairs in order means."""
    return (
        f"by how far visits of one node differ, {share.value:.0%} of the pairs ({share.low:.0%} to {share.high:.0%}) "
        "are in the order of their nodes' true values"
    )


def label_noise(trees: Iterable[Artifact], pairs: Artifact) -> LabelNoise:
    """Measure the pairs of an artifact by the values of trees.

    Args:
        trees: those that they were taken from, and others by the same actor and judge, which make the spread surer.
        pairs: kind preference_pairs or prm_pairs.
    """
    noise = LabelNoise()
    for artifact in trees:
        for frame in read_trees(artifact):
            noise.add_trees(unfold(frame))
    columns = ("task", "margin", "chosen_visits", "rejected_visits", "chosen_is_terminal", "rejected_is_terminal")
    noise.add_pairs(pairs.scan().select(columns).collect())
    return noise
