"""Trainings that differ by their seed alone: the spread between them, beside the interval over prompts."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from stairdata.report.overview.content import ReportTable, estimate, interval, share, short
from stairdata.report.overview.sources import ReportSources
from stairdata.statistics.training_seeds import spread_of_seeds
from stairdata_schemas.aliases import Json
from stairdata_schemas.manifest import sha256_of_json

_CELL = ["judge", "reads", "benchmark", "task", "attack", "method"]


def seeds_table(sources: ReportSources, rows: pl.DataFrame) -> ReportTable | None:
    """Return how far models lie apart that were trained in the same way with several seeds; None without such.

    Args:
        sources: of the report.
        rows: of evaluations.
    """
    lines = []
    plain = rows.filter(pl.col("good").is_not_null()).with_columns(name=pl.col("model").str.split("@").list.first())
    for names in _alike(sources.trainings):
        own = plain.filter(pl.col("name").is_in(names))
        for place in own.select(_CELL).unique().sort(_CELL).iter_rows():
            cell = own.filter(*(pl.col(column) == value for column, value in zip(_CELL, place, strict=True)))
            lines += _line(place, cell)
    header = [
        "benchmark", "task", "attack", "judge", "trainings", "mean", "interval over seeds", "deviation between seeds",
        "lowest to highest", "over prompts",
    ]  # fmt: skip
    notes = [
        "The interval over prompts says how the mean of these models would differ on other prompts, that over "
        "seeds how it would differ for other seeds (Student's t; very wide for two or three). Neither holds the other."
    ]
    return ReportTable("Trainings that differ by their seed alone", header, lines, notes) if lines else None


def _alike(trainings: dict[str, Json]) -> Iterator[list[str]]:
    """Yield the names of models whose trainings differ by their seed alone."""
    groups: dict[str, list[str]] = {}
    for name, record in trainings.items():
        identity = record.get("identity")
        settings = identity.get("settings") if isinstance(identity, dict) else None
        if isinstance(identity, dict) and isinstance(settings, dict) and "seed" in settings:
            same = {**identity, "settings": {key: value for key, value in settings.items() if key != "seed"}}
            groups.setdefault(sha256_of_json(same), []).append(name)
    yield from (names for names in groups.values() if len(names) > 1)


def _line(place: tuple[str, ...], cell: pl.DataFrame) -> list[list[str]]:
    judge, reads, benchmark, task, attack, _ = place
    scores = {
        str(model): (part["good"].to_numpy(), part["prompt_id"].to_list())
        for (model,), part in cell.sort("model").partition_by("model", as_dict=True, maintain_order=True).items()
    }
    if len(scores) < 2:
        return []
    found = spread_of_seeds(scores)
    return [
        [
            short(benchmark),
            task,
            short(attack),
            f"{short(judge)}, {reads}",
            ", ".join(map(short, scores)),
            share(found.mean),
            "" if found.low is None else interval(found.mean, found.low, found.high),
            share(found.deviation),
            f"{share(found.lowest)} to {share(found.highest)}",
            estimate(found.over_prompts),
        ]
    ]
