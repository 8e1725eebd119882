"""Answers that models gave, as one table: who answered, how long, and whether they refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from stairdata.generators.evaluations.plan import model_label
from stairdata.report.overview.sources import ReportSources
from stairdata.search.refusal import is_refusal
from stairdata_schemas.artifacts import Artifact

COLUMNS = ("response_id", "prompt_id", "task", "answerer", "model", "method", "tokens", "refused")
MOST = 20_000
"""Answers of an artifact that are looked at: the rule takes about 0.3 ms for each."""
SEED = 42
_FIRST = ("base", "sft")
_PARTS = re.compile(r"(\d+)")


def answers(sources: ReportSources) -> pl.DataFrame | None:
    """Return one row for each response: the columns above; `refused` is by the rule. None where there are none."""
    frames = [_of_artifact(artifact) for artifact in sources.of_kind("responses") if artifact.manifest.rows]
    return pl.concat(frames).unique("response_id", keep="last", maintain_order=True) if frames else None


def _of_artifact(artifact: Artifact) -> pl.DataFrame:
    actor = artifact.manifest.actor
    revision = actor.revision if actor else None
    columns = ["response_id", "prompt_id", "task", "method", "model", "n", "text", "completion_tokens"]
    rows = artifact.scan().select(columns).collect()
    if len(rows) > MOST:
        rows = rows.sample(MOST, seed=SEED)
    labels = {
        name: model_label(name, revision if actor and actor.name == name else None) for name in rows["model"].unique()
    }
    return (
        rows.with_columns(
            pl.col("model").replace_strict(labels, return_dtype=pl.String),
            tokens=pl.col("completion_tokens").cast(pl.Float64),
            refused=rows["text"].map_elements(is_refusal, return_dtype=pl.Boolean, skip_nulls=False),
        )
        .with_columns(answerer=_answerer())
        .select(COLUMNS)
    )


def _answerer() -> pl.Expr:
    """Name a model with the way that it answered."""
    number = pl.col("n").cast(pl.String)
    how = (
        pl.when(pl.col("method") == "best_of_n").then(pl.lit(", best of ") + number)
        .when(pl.col("method") == "beam").then(pl.lit(", beam of ") + number)
        .otherwise(pl.lit(""))
    )  # fmt: skip
    return pl.col("model") + how


def in_order(names: Sequence[str], sources: ReportSources) -> list[str]:
    """Sort models as a run made them: by rounds.csv where it names them, else the start model, SFT, then by numbers."""
    rounds = [str(row["model"]) for row in sources.rounds]

    def place(name: str) -> tuple[int, int, list[tuple[int, int | str]]]:
        plain = name.partition("@")[0].partition(",")[0]
        known = rounds.index(plain) if plain in rounds else len(rounds)
        first = _FIRST.index(plain) if plain in _FIRST else len(_FIRST)
        parts = _PARTS.split(name)
        return known, first, [(0, int(part)) if part.isdecimal() and part.isascii() else (1, part) for part in parts]

    return sorted(dict.fromkeys(names), key=place)
