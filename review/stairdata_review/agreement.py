"""How far reviewers agree: with each other, and with the values of the search."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from stairdata_schemas.aliases import Json

Level = Literal["nominal", "ordinal"]
QUESTIONS: dict[str, Level] = {
    "verdict": "nominal",
    "safe": "nominal",
    "reasoning": "nominal",
    "helpfulness": "ordinal",
}
"""Questions that agreement is measured on, with the level of measurement of their answers."""
SIDES = ("chosen", "rejected")
SECONDS_OF_A_BREAK = 600


def agreement(reviews: pl.DataFrame, facts: pl.DataFrame) -> Json:
    """Measure agreement.

    Args:
        reviews: rows of kind `reviews` of one item kind.
        facts: `item_id` and, where known, `task` and `depth` of each item.

    Returns:
        answers, items, reviewers; for each question alpha (Krippendorff's; null where it is not defined), pairwise (the
        share of equal answers among all pairs of answers to one item) and pairs (how many there are); against_value
        (how often a verdict for one side names the side of higher value, and how many verdicts name one); first_side
        (how often such a verdict names the side that was shown first); the same by task, by depth and by reviewer.
    """
    answered = unfold(reviews).join(facts, on="item_id", how="left")
    figures = _measure(answered)
    for name in ("task", "depth"):
        if name in answered.columns:
            parts = answered.drop_nulls(name).sort(name).partition_by(name, as_dict=True, maintain_order=True)
            figures[f"by_{name}"] = {str(key): _measure(part) for (key,), part in parts.items()}
    parts = answered.sort("reviewer").partition_by("reviewer", as_dict=True, maintain_order=True)
    figures["by_reviewer"] = {str(key): {"answers": len(part)} | _sides(part) for (key,), part in parts.items()}
    return figures


def unfold(reviews: pl.DataFrame) -> pl.DataFrame:
    """Give the questions of other kinds, which stand as JSON in `answers`, columns of their own."""
    other = pl.Struct({"safe": pl.String, "reasoning": pl.String, "helpfulness": pl.Int64})
    decoded = reviews.with_columns(pl.col("answers").str.json_decode(other).alias("other"))
    return decoded.with_columns(
        pl.coalesce("safe", pl.col("other").struct.field("safe")).alias("safe"),
        pl.col("other").struct.field("reasoning"),
        pl.col("other").struct.field("helpfulness"),
    ).drop("other")


def _measure(answered: pl.DataFrame) -> Json:
    figures: Json = {
        "answers": len(answered),
        "items": answered["item_id"].n_unique(),
        "reviewers": answered["reviewer"].n_unique(),
    }
    for question, level in QUESTIONS.items():
        given = answered.drop_nulls(question)
        if len(given):
            figures[question] = among_reviewers(given, question, level)
    return figures | _sides(answered)


def _sides(answered: pl.DataFrame) -> Json:
    sided = answered.filter(pl.col("verdict").is_in(SIDES))
    if sided.is_empty():
        return {}
    first = sided.drop_nulls("shown_first")
    # of a pair that reviewers turned round, the rejected side has the higher value
    higher = pl.Series(["chosen"] * len(sided))
    if "margin" in sided.columns:
        higher = sided.select(
            pl.when(pl.col("margin") < 0).then(pl.lit("rejected")).otherwise(pl.lit("chosen"))
        ).to_series()
    figures: Json = {"against_value": _share(sided["verdict"] == higher)}
    return figures | ({"first_side": _share(first["verdict"] == first["shown_first"])} if len(first) else {})


def _share(hits: pl.Series) -> Json:
    return {"share": _rounded(float(hits.sum()) / len(hits)), "of": len(hits)}


def among_reviewers(answers: pl.DataFrame, question: str, level: Level) -> Json:
    """Compare the answers of several reviewers to the same items."""
    counts = answers.group_by("item_id", question).len().sort("item_id", question)
    values = sorted(answers[question].unique())
    wide = counts.pivot(on=question, index="item_id", values="len").fill_null(0)
    matrix = wide.select(str(value) for value in values).to_numpy().astype(np.int64)
    total = matrix.sum(axis=1)
    pairs = int((total * (total - 1) // 2).sum())
    equal = int((matrix * (matrix - 1) // 2).sum())
    return {
        "alpha": _alpha(matrix, values, level),
        "pairwise": _rounded(equal / pairs) if pairs else None,
        "pairs": pairs,
    }


def _alpha(matrix: np.ndarray[Any, np.dtype[np.int64]], values: list[Any], level: Level) -> float | None:
    """Return Krippendorff's alpha; None where nobody answered the same item twice, or all answers are equal."""
    import krippendorff

    compared = matrix[matrix.sum(axis=1) > 1]
    if (compared.sum(axis=0) > 0).sum() < 2:
        return None
    domain = np.array(values if level != "nominal" else range(len(values)))
    return _rounded(float(krippendorff.alpha(value_counts=compared, value_domain=domain, level_of_measurement=level)))


def _rounded(value: float) -> float:
    return round(value, 4)


def seconds_an_answer(reviews: pl.DataFrame) -> float | None:
    """Return the median time between two answers of one reviewer, breaks of over ten minutes left out."""
    ordered = reviews.sort("reviewer", "submitted_at")
    gaps = ordered.select(gap=pl.col("submitted_at").diff().over("reviewer").dt.total_milliseconds() / 1000)["gap"]
    working = gaps.drop_nulls().filter(gaps.drop_nulls() <= SECONDS_OF_A_BREAK)
    return _rounded(float(working.median() or 0)) if len(working) else None  # type: ignore[arg-type]
