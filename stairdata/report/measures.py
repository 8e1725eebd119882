"""What can be counted about an artifact: figures of its rows, and counts of their classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from stairdata_schemas.artifacts import Artifact

Numbers = npt.NDArray[np.float64]

_NODE = pl.col("nodes").explode().struct


def _nodes(field: str) -> pl.Expr:
    return _NODE.field(field)


def _length(column: str) -> pl.Expr:
    return pl.col(column).str.len_chars()


NODE_VALUE = pl.coalesce(
    pl.when(pl.col("nodes").struct.field("is_terminal")).then(pl.col("nodes").struct.field("reward")),
    pl.col("nodes").struct.field("value_sum") / pl.col("nodes").struct.field("visits"),
)
"""V of a node in a column of single nodes, as pairs have it: a terminal node's reward, else the mean."""
_VALUE = _nodes("value_sum") / _nodes("visits")  # 0 / 0 where unvisited: NaN, left out below
_PAIRS = {
    "margin": pl.col("margin"),
    "value of the chosen": pl.col("chosen_value"),
    "value of the rejected": pl.col("rejected_value"),
    "depth": pl.col("depth"),
    "visits of the chosen": pl.col("chosen_visits"),
    "length of the chosen (characters)": _length("chosen"),
    "length of the rejected (characters)": _length("rejected"),
    "length of the shared prefix (characters)": pl.col("prefix_length"),
}
_FIGURES: dict[str, dict[str, pl.Expr]] = {
    "prompts": {"length of the prompt (characters)": _length("prompt")},
    "structured_cot": {
        "steps": pl.col("steps").list.len(),
        "length of the completion (characters)": _length("completion"),
    },
    "trees": {
        "nodes of a tree": pl.col("nodes").list.len(),
        "value of a node": _VALUE,
        "reward of an answer": _nodes("reward"),
        "visits of a node": _nodes("visits"),
        "depth of a node": _nodes("depth"),
        "length of a step (characters)": _nodes("step").str.len_chars(),
    },
    "preference_pairs": _PAIRS,
    "prm_pairs": _PAIRS,
    "responses": {
        "score": pl.col("score"),
        "tokens of all candidates": pl.col("completion_tokens"),
        "length of the answer (characters)": _length("text"),
    },
    "evaluations": {
        "helpfulness": pl.col("helpfulness"),
        "safety": pl.col("safety"),
        "score": pl.col("score"),
    },
    "reviews": {},
}
_CLASSES = {
    "prompts": ("task", "source", "category"),
    "structured_cot": ("task", "teacher"),
    "trees": ("task", "actor", "round"),
    "preference_pairs": ("task", "granularity", "chosen_is_terminal", "rejected_is_terminal", "round"),
    "prm_pairs": ("task", "granularity", "chosen_is_terminal", "rejected_is_terminal", "round"),
    "responses": ("task", "method", "model"),
    "evaluations": ("task", "benchmark", "attack", "model", "method", "refused"),
    "reviews": ("item_kind", "verdict", "safe"),
}
LARGEST_CLASSES = 20


def figures(artifact: Artifact) -> Iterator[tuple[str, Numbers]]:
    """Yield each figure's name and values, one figure at a time; nulls and what is not finite are left out."""
    for name in _FIGURES[artifact.kind]:
        yield name, figure(artifact, name)


def figure(artifact: Artifact, name: str) -> Numbers:
    """Return the values of one figure, such as `value of a node`."""
    expression = _FIGURES[artifact.kind][name]
    column = artifact.scan().select(value=expression.cast(pl.Float64)).collect(engine="streaming")["value"]
    values: Numbers = column.drop_nulls().to_numpy()
    return cast("Numbers", values[np.isfinite(values)])


def classes(artifact: Artifact) -> dict[str, dict[str, int]]:
    """Count the rows by the columns that put them into classes, the largest classes first; null is `none`."""
    found = {}
    for column in _CLASSES[artifact.kind]:
        counts = artifact.scan().group_by(pl.col(column).cast(pl.String).fill_null("none")).len()
        frame = counts.sort(["len", column], descending=[True, False]).head(LARGEST_CLASSES)
        found[column] = dict(frame.collect(engine="streaming").iter_rows())
    return found
