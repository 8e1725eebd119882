"""How far two judges of the same trees agree, or a judge and reviewers: ranks, safe or unsafe, sides of pairs.

Rank correlations are Spearman's rho and Kendall's tau-b, which allows for ties, as scipy computes them; kappa is
Cohen's (`statistics.agreement`). Each has its own question: ranks ask whether better answers are rated higher, whatever
the scale, kappa whether the same answers count as safe, sides whether the same step would be trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.generators.pairs.review_decisions import is_about
from stairdata.hub.lineage import nearest_ancestor
from stairdata.report.measures import NODE_VALUE
from stairdata.statistics.agreement import Agreement, measure_agreement
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import UsageError

PAIRS = "preference_pairs"
DECIMALS = 9
"""Of margins: what is beyond them is rounding."""
SCORES = ("reward", "helpfulness", "safety")
_NODE = pl.col("nodes").struct


class RankAgreement(NamedTuple):
    """How alike two ratings order the same things."""

    name: str
    rated: int
    """By both."""
    mean_a: float | None
    mean_b: float | None
    spearman: float | None
    """None where one of the two rates all alike."""
    kendall: float | None


class Sides(NamedTuple):
    """Pairs by whether both ratings prefer the same side."""

    pairs: int
    same: int
    turned: int
    tied: int
    """One of the two, or both, prefer neither side."""


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """All that is compared; A is the first reference."""

    a: str
    b: str
    shared: int
    """Trees that both rate, or pairs that reviewers gave a verdict on."""
    ranks: list[RankAgreement]
    yes_or_no: Agreement | None
    """A as the label, B as the verdict: that an answer is safe (S > 0), or that the earlier node of a pair is better.
    None where nothing says so."""
    sides: dict[str, Sides]

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {
            **asdict(self),
            "ranks": [each._asdict() for each in self.ranks],
            "yes_or_no": self.yes_or_no and self.yes_or_no.as_json(),
            "sides": {name: each._asdict() for name, each in self.sides.items()},
        }


def compare_judges(a: Artifact, b: Artifact, root: Path, min_margin: float = 0.5) -> JudgeAgreement:
    """Compare two ratings of the same trees, or reviews of pairs with a rating of their trees.

    Args:
        a: trees.
        b: the same trees by another judge, or reviews of pairs of these trees.
        root: where the pairs are that reviews are about.
        min_margin: of values; pairs of siblings that are so far apart by one of the judges are counted by themselves.

    Raises:
        UsageError: other kinds, or trees that have nothing in common.
    """
    if (a.kind, b.kind) == ("reviews", "trees"):
        a, b = b, a
    if a.kind != "trees" or b.kind not in {"trees", "reviews"}:
        raise UsageError(
            f"{a.reference} and {b.reference}: compare two artifacts of kind trees, or one of trees and one of reviews"
        )
    return _with_reviews(a, b, root) if b.kind == "reviews" else _two_judges(a, b, min_margin)


def _two_judges(a: Artifact, b: Artifact, min_margin: float) -> JudgeAgreement:
    of_a, of_b = _nodes(a), _nodes(b)
    key = ["tree_id", "node_id"]
    nodes = of_a.join(of_b, on=key, suffix="_b", maintain_order="left").collect(engine="streaming")
    _check_same(a, b, nodes)
    answers = _answers(nodes)
    visited = nodes.filter((pl.col("visits") > 0) & (pl.col("parent_id") >= 0))
    ranks = [_ranks(f"{name} of an answer", answers[name], answers[f"{name}_b"]) for name in SCORES]
    ranks.append(_ranks("value of a node", visited["value"], visited["value_b"]))
    rated = answers.drop_nulls(["safety", "safety_b"])
    safety = None
    if len(rated):
        safety = _yes_or_no(rated["safety"], rated["safety_b"], rated["prompt_id"])
    siblings = _siblings(visited)
    far = siblings.filter((pl.col("margin").abs() > min_margin) | (pl.col("margin_b").abs() > min_margin))
    sides = {
        "all siblings": _sides(siblings["margin"], siblings["margin_b"]),
        f"siblings over {min_margin:g} apart by one of the two": _sides(far["margin"], far["margin_b"]),
    }
    return JudgeAgreement(a.reference, b.reference, nodes["tree_id"].n_unique(), ranks, safety, sides)


def _nodes(trees: Artifact) -> pl.LazyFrame:
    """Return a row a node: its scores and those of its rollouts, and a hash of all that no judge decides."""
    rollouts = _NODE.field("rollouts")
    texts = rollouts.list.eval(pl.element().struct.field("text"))
    names = ("node_id", "parent_id", "visits", "is_terminal", *SCORES)
    rows = trees.scan().select("tree_id", "prompt_id", "nodes").explode("nodes")
    return rows.select(
        "tree_id",
        "prompt_id",
        *(_NODE.field(name) for name in names),
        value=NODE_VALUE,
        rollouts=rollouts.list.eval(_scores()),
        grown=pl.struct(_NODE.field("parent_id", "step", "visits", "is_terminal"), texts.alias("texts")).hash(),
    )


def _check_same(a: Artifact, b: Artifact, nodes: pl.DataFrame) -> None:
    named = f"{a.reference} and {b.reference}"
    remedy = "compare trees with what `build trees --rejudge` made of them"
    if nodes.is_empty():
        prompts = [set(each.scan().select("prompt_id").collect()["prompt_id"]) for each in (a, b)]
        what = "tree" if prompts[0] & prompts[1] else "prompt"
        raise UsageError(f"{named} have no {what} in common; {remedy}")
    other = nodes.filter(pl.col("grown") != pl.col("grown_b"))
    if len(other):
        tree, node = other.select("tree_id", "node_id").row(0)
        raise UsageError(
            f"{named} are no ratings of the same trees: node {node} of tree {tree} has another text, or other visits, "
            f"in the two; {remedy}"
        )


def _answers(nodes: pl.DataFrame) -> pl.DataFrame:
    """Return a row an answer: rollouts, and terminal nodes."""
    both = [*SCORES, *(f"{name}_b" for name in SCORES)]
    whole = nodes.filter(pl.col("is_terminal") & pl.col("reward").is_not_null()).select("prompt_id", *both)
    rollouts = nodes.select(
        "prompt_id",
        "rollouts",
        pl.col("rollouts_b").list.eval(_scores("_b")),
    ).filter(pl.col("rollouts").list.len() > 0)
    unfinished = rollouts.explode("rollouts", "rollouts_b").unnest("rollouts", "rollouts_b")
    return pl.concat([whole, unfinished.select(whole.columns)])


def _scores(suffix: str = "") -> pl.Expr:
    return pl.struct(pl.element().struct.field(name).alias(f"{name}{suffix}") for name in SCORES)


def _siblings(nodes: pl.DataFrame) -> pl.DataFrame:
    """Return how far apart each two visited siblings are, by both."""
    narrow = nodes.select("tree_id", "parent_id", "node_id", "value", "value_b")
    pairs = narrow.join(narrow, on=["tree_id", "parent_id"], suffix="_of_other")
    pairs = pairs.filter(pl.col("node_id") < pl.col("node_id_of_other"))
    return pairs.select(
        margin=pl.col("value") - pl.col("value_of_other"), margin_b=pl.col("value_b") - pl.col("value_b_of_other")
    )


def _with_reviews(trees: Artifact, reviews: Artifact, root: Path) -> JudgeAgreement:
    if reviews.manifest.configuration.get("item_kind") != PAIRS or not is_about(reviews, trees):
        raise UsageError(
            f"{reviews.reference} is not about preference_pairs of {trees.reference}; name the trees that those pairs "
            "were taken from, or what `build trees --rejudge` made of them"
        )
    pairs = nearest_ancestor(reviews, PAIRS, root)
    if pairs is None:
        raise UsageError(f"the pairs that {reviews.reference} is about are not under {root}; pull or build them there")
    rows = _reviewed_pairs(trees, reviews, pairs)
    if rows.is_empty():
        raise UsageError(f"{reviews.reference} has no verdict on a pair whose nodes are in {trees.reference}")
    decided = rows.filter((pl.col("margin") != 0) & (pl.col("verdict") != 0))
    better = _yes_or_no(decided["margin"], decided["verdict"], decided["prompt_id"]) if len(decided) else None
    return JudgeAgreement(
        trees.reference,
        reviews.reference,
        len(rows),
        [_ranks("preference for a node of a pair", rows["margin"], rows["verdict"])],
        better,
        {"reviewed pairs": _sides(rows["margin"], rows["verdict"])},
    )


def _reviewed_pairs(trees: Artifact, reviews: Artifact, pairs: Artifact) -> pl.DataFrame:
    """Return a row a pair: by how much the judge prefers its earlier node, and reviewers in the mean (-1 to 1).

    The judge of the pairs has put the chosen side first, so a pair is turned to the order in which its nodes were
    sampled: else that judge would always say the same, and no kappa could tell it from chance.
    """
    said = pl.col("verdict").replace_strict({"chosen": 1.0, "rejected": -1.0}, default=0.0)
    verdicts = reviews.scan().filter((pl.col("item_kind") == PAIRS) & pl.col("verdict").is_not_null())
    means = verdicts.group_by(pair_id="item_id").agg(verdict=said.mean())
    columns = ["pair_id", "prompt_id", "tree_id", "chosen_node_id", "rejected_node_id"]
    rows = pairs.scan().select(columns).join(means, on="pair_id")
    nodes = trees.scan().select("tree_id", "nodes").explode("nodes")
    values = nodes.select("tree_id", _NODE.field("node_id"), value=NODE_VALUE).filter(pl.col("value").is_finite())
    for side in ("chosen", "rejected"):
        of_side = values.rename({"node_id": f"{side}_node_id", "value": f"{side}_value"})
        rows = rows.join(of_side, on=["tree_id", f"{side}_node_id"])
    turn = pl.when(pl.col("chosen_node_id") < pl.col("rejected_node_id")).then(1.0).otherwise(-1.0)
    margin = pl.col("chosen_value") - pl.col("rejected_value")
    found = rows.sort("pair_id").select("prompt_id", margin=margin * turn, verdict=pl.col("verdict") * turn)
    return found.collect(engine="streaming")


def _ranks(name: str, a: pl.Series, b: pl.Series) -> RankAgreement:
    from scipy import stats

    both = pl.DataFrame({"a": a, "b": b}).drop_nulls()
    of_a, of_b = both["a"].to_numpy(), both["b"].to_numpy()
    rho = tau = None
    if min(both["a"].n_unique(), both["b"].n_unique()) > 1:
        rho, tau = float(stats.spearmanr(of_a, of_b)[0]), float(stats.kendalltau(of_a, of_b)[0])
    means = [float(each.mean()) if len(each) else None for each in (of_a, of_b)]
    return RankAgreement(name, len(both), means[0], means[1], rho, tau)


def _yes_or_no(a: pl.Series, b: pl.Series, prompt_ids: pl.Series) -> Agreement:
    return measure_agreement((a > 0).to_list(), (b > 0).to_list(), prompt_ids.to_list())


def _sides(a: pl.Series, b: pl.Series) -> Sides:
    product = a.round(DECIMALS).sign() * b.round(DECIMALS).sign()
    counts = [int((product == value).sum()) for value in (1, -1, 0)]
    return Sides(len(product), *counts)
