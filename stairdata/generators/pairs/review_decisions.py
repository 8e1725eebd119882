"""What reviewers said decides which pairs train: confirmed, overruled, or no decision.

Only pairs have verdicts, and only those of the same trees are the same pairs: ids repeat from one actor to the next.
Trees that were rated again are the same trees, with other values: a verdict says which side people prefer, whoever put
them into that order.
"""

from __future__ import annotations

from collections import Counter

import polars as pl

from stairdata.recipe import ReviewsSection
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import BuildError, UsageError
from stairdata_schemas.kinds import polars_schema

KIND = "preference_pairs"
DECISIONS = ("confirmed", "overruled", "tie", "both_bad", "unreviewed")


def read_verdicts(reviews: Artifact, trees: Artifact) -> pl.DataFrame:
    """Return `pair_id`, and how many verdicts each of chosen, rejected, tie and both_bad has.

    Raises:
        UsageError: no reviews, or of pairs of other trees.
        BuildError: no verdict in them.
    """
    if reviews.kind != "reviews":
        raise UsageError(f"--reviews needs an artifact of kind reviews; {reviews.reference} is of kind {reviews.kind}")
    about = reviews.manifest.configuration.get("item_kind")
    if about != KIND:
        raise UsageError(f"{reviews.reference} is about {about}; name reviews of {KIND}")
    if not is_about(reviews, trees):
        raise UsageError(
            f"{reviews.reference} is about pairs of other trees than {trees.reference}; name those trees with --input, "
            "or use reviews of pairs of these"
        )
    verdicts = reviews.scan().filter((pl.col("item_kind") == KIND) & pl.col("verdict").is_not_null())
    counts = verdicts.group_by(pair_id="item_id").agg(
        (pl.col("verdict") == verdict).sum().cast(pl.Int64).alias(f"says_{verdict}")
        for verdict in ("chosen", "rejected", "tie", "both_bad")
    )
    collected = counts.collect()
    if collected.is_empty():
        raise BuildError(f"{reviews.reference} contains no verdict on {KIND}")
    return collected


def is_about(reviews: Artifact, trees: Artifact) -> bool:
    """Tell whether reviews are of pairs of these trees, or of the same trees as another judge rated them."""
    return bool(_trees_of(reviews) & {trees.manifest.content_hash, *trees.manifest.same_trees})


def notes_on(reviews: Artifact, trees: Artifact) -> list[str]:
    """Return what the manifest of pairs says of their reviews."""
    if trees.manifest.content_hash in _trees_of(reviews):
        return []
    return [f"{reviews.reference} is about pairs of these trees as another judge rated them"]


def _trees_of(reviews: Artifact) -> set[str]:
    return {parent["content_hash"] for parent in reviews.manifest.details.get("reviewed", {}).get("parents", [])}


def decide(pairs: pl.DataFrame, verdicts: pl.DataFrame, section: ReviewsSection) -> pl.Series:
    """Return the decision on each pair, one of DECISIONS.

    majority: what more than half of the verdicts say; where none is said by more than half, a tie. unanimous: what all
    say, else a tie. any_veto: overruled by one `rejected` or `both_bad`, confirmed by a `chosen` and no veto.
    """
    joined = pairs.select("pair_id").join(verdicts, on="pair_id", how="left", maintain_order="left").fill_null(0)
    chosen, rejected, tie, bad = (pl.col(f"says_{name}") for name in ("chosen", "rejected", "tie", "both_bad"))
    total = chosen + rejected + tie + bad
    if section.policy == "any_veto":
        decision = (
            pl.when((rejected > 0) | (bad > 0)).then(pl.lit("overruled"))
            .when(chosen > 0).then(pl.lit("confirmed"))
            .otherwise(pl.lit("tie"))
        )  # fmt: skip
    else:
        needed = total if section.policy == "unanimous" else total // 2 + 1
        decision = (
            pl.when(chosen >= needed).then(pl.lit("confirmed"))
            .when(rejected >= needed).then(pl.lit("overruled"))
            .when(bad >= needed).then(pl.lit("both_bad"))
            .otherwise(pl.lit("tie"))
        )  # fmt: skip
    unreviewed = total < section.min_reviews
    return joined.select(decision=pl.when(unreviewed).then(pl.lit("unreviewed")).otherwise(decision)).to_series()


def apply_reviews(
    pairs: pl.DataFrame, verdicts: pl.DataFrame, section: ReviewsSection, counts: Counter[str]
) -> pl.DataFrame:
    """Keep, flip or drop pairs by what reviewers decided; `counts` says how many of each."""
    verdicts = _of_either_direction(pairs, verdicts)
    decisions = decide(pairs, verdicts, section)
    counts.update(decisions.to_list())
    kept = (decisions == "confirmed") | ((decisions == "unreviewed") & (section.unreviewed == "keep"))
    flipped = _flippable(pairs, decisions, verdicts) if section.overruled == "flip" else pl.Series([False] * len(pairs))
    counts["flipped"] += int(flipped.sum())
    counts["dropped"] += int((~kept & ~flipped).sum())
    rows = pl.concat([pairs.filter(kept), flip(pairs.filter(flipped))])
    return rows.sort("tree_id", "chosen_node_id", "rejected_node_id", "granularity")


def turned_ids(pairs: pl.DataFrame) -> pl.Series:
    """Return the ids that pairs have once they are turned round, as an earlier round of reviews may have done."""
    keys = pairs.select("tree_id", "rejected_node_id", "chosen_node_id", "granularity").iter_rows()
    return pl.Series("pair_id", [identity.pair_id(*key) for key in keys], pl.String)


def _of_either_direction(pairs: pl.DataFrame, verdicts: pl.DataFrame) -> pl.DataFrame:
    """Add verdicts on turned pairs to those on the pairs themselves, chosen and rejected exchanged."""
    turned = verdicts.rename({"says_chosen": "says_rejected", "says_rejected": "says_chosen"})
    names = pl.DataFrame({"turned": turned_ids(pairs), "own": pairs["pair_id"]})
    own = turned.join(names, left_on="pair_id", right_on="turned").with_columns(pair_id="own").drop("own")
    both = pl.concat([verdicts, own.select(verdicts.columns)])
    return both.group_by("pair_id", maintain_order=True).sum()


def _flippable(pairs: pl.DataFrame, decisions: pl.Series, verdicts: pl.DataFrame) -> pl.Series:
    """Return which overruled pairs may be turned round: more reviewers want the other side than this one or neither."""
    joined = pairs.select("pair_id").join(verdicts, on="pair_id", how="left", maintain_order="left").fill_null(0)
    other = joined["says_rejected"] > joined["says_chosen"] + joined["says_both_bad"]
    return (decisions == "overruled") & other


def flip(pairs: pl.DataFrame) -> pl.DataFrame:
    """Make the rejected side the chosen one; the margin is below zero then, for the values stay what they are."""
    columns = {"chosen": pl.col("rejected"), "rejected": pl.col("chosen"), "margin": -pl.col("margin")}
    for name in ("value", "visits", "is_terminal", "node_id"):
        columns |= {f"chosen_{name}": pl.col(f"rejected_{name}"), f"rejected_{name}": pl.col(f"chosen_{name}")}
    return pairs.with_columns(**columns).with_columns(turned_ids(pairs)).select(list(polars_schema(KIND)))
