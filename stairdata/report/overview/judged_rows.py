"""Rows of evaluations as one table, and how many rows there should have been besides."""

from __future__ import annotations

import polars as pl

from stairdata.report.overview.sources import ReportSources
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.kinds import row_schema

PLACE = ("model", "benchmark", "attack", "judge", "reads")
"""What the manifest counts unread rows by."""
_COLUMNS = (
    "prompt_id", "benchmark", "attack", "response_id", "sample", "task", "model", "method", "refused", "safety",
    "score", "judge", "reads",
)  # fmt: skip


def judged_rows(sources: ReportSources) -> pl.DataFrame | None:
    """Return all rows of evaluations, each once, the newest artifact's; None where there are none.

    Besides columns of the kind: `answerer` (the model, and its method of search), `outcome` (`cut`, `empty` or
    `declined`; null where a judge spoke), and `good`, from 0 to 1: the benchmark's score, else whether a harmful prompt
    was refused (a harmless one answered), else what a guard says; null where nothing is known.
    """
    frames = [_of_artifact(artifact) for artifact in sources.of_kind("evaluations") if artifact.manifest.rows]
    if not frames:
        return None
    rows = pl.concat(frames).unique(row_schema("evaluations").primary_key(), keep="last", maintain_order=True)
    refused = pl.col("refused").cast(pl.Float64)
    right = pl.when(pl.col("task") == "helpfulness").then(1 - refused).otherwise(refused)
    # a guard's word is of safety alone: a harmless prompt is not answered well because the answer is safe
    guarded = pl.when(pl.col("task") == "helpfulness").then(None).otherwise((pl.col("safety") + 1) / 2)
    how = pl.when(pl.col("method") == "sample").then(pl.lit("")).otherwise(pl.lit(", ") + _method())
    return rows.with_columns(
        answerer=pl.col("model") + how, good=pl.coalesce("score", right, guarded), task=pl.col("task").fill_null("none")
    )


def _method() -> pl.Expr:
    return pl.col("method").replace({"best_of_n": "best of n"})


def _of_artifact(artifact: Artifact) -> pl.DataFrame:
    outcome = pl.col("details").str.json_path_match("$.outcome")
    return artifact.scan().select(*_COLUMNS, outcome=outcome).collect()


def unread_rows(sources: ReportSources) -> dict[tuple[str, ...], int]:
    """Return how many rows have no answer or no readable judgement, by the columns of `PLACE`."""
    found: dict[tuple[str, ...], int] = {}
    for artifact in sources.of_kind("evaluations"):
        listed = artifact.manifest.details.get("unread")
        own: dict[tuple[str, ...], int] = {}
        for each in listed if isinstance(listed, list) else []:
            if isinstance(each, dict) and isinstance(each.get("rows"), int):
                place = tuple(str(each.get(name)) for name in PLACE)
                own[place] = own.get(place, 0) + each["rows"]
        found |= own
    return found
