"""Rows to look at: a seeded sample of answers and pairs, whose texts are shown after a click alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from stairdata.report.overview.content import short
from stairdata.report.overview.sources import ReportSources
from stairdata.search.refusal import is_refusal
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import visible

EXAMPLES = 300
TEXT_LIMIT = 4000
"""Characters of a text that are shown."""
SEED = 42
_KINDS = ("evaluations", "responses", "preference_pairs")
FILTERS = ("kind", "task", "round", "attack", "refused", "model")


@dataclass(frozen=True, slots=True)
class Examples:
    """What the page's script lists."""

    rows: list[Row] = field(default_factory=list)
    """JSON values: a value for each of FILTERS, and texts as pairs of a name and a text."""
    available: int = 0
    """Rows that they were drawn from."""
    cut: int = 0
    """Texts that are shown in part."""

    @property
    def filters(self) -> dict[str, list[str]]:
        """Values to choose from, of those filters that tell rows apart."""
        found = {name: sorted({row[name] for row in self.rows}) for name in FILTERS}
        return {name: values for name, values in found.items() if len(values) > 1}


def examples(sources: ReportSources, most: int = EXAMPLES) -> Examples:
    """Draw examples of evaluations, responses and pairs, as many of each kind and of each of its artifacts.

    Args:
        sources: of the report.
        most: examples in all.
    """
    kinds = [[each for each in sources.of_kind(kind) if each.manifest.rows] for kind in _KINDS]
    rounds = _rounds(sources)
    sizes = [[artifact.manifest.rows for artifact in artifacts] for artifacts in kinds]
    drawn = [
        row
        for artifacts, own, wanted in zip(kinds, sizes, _quotas([sum(each) for each in sizes], most), strict=True)
        for artifact, number in zip(artifacts, _quotas(own, wanted), strict=True)
        for row in _drawn(artifact, number, rounds)
    ]
    cut = sum(len(text) > TEXT_LIMIT for row in drawn for _, text in row["texts"])
    for row in drawn:
        row["texts"] = [[name, _shown(text)] for name, text in row["texts"]]
    return Examples(drawn, sum(map(sum, sizes)), cut)


def _quotas(sizes: Sequence[int], most: int) -> list[int]:
    """Share out a number of examples: as many to each, and what a small one leaves to the larger ones."""
    quotas, left = [0] * len(sizes), most
    for rank, place in enumerate(sorted(range(len(sizes)), key=lambda place: sizes[place])):
        quotas[place] = min(sizes[place], left // (len(sizes) - rank))
        left -= quotas[place]
    return quotas


def _shown(text: str) -> str:
    rest = len(text) - TEXT_LIMIT
    return visible(text) if rest <= 0 else f"{visible(text[:TEXT_LIMIT])}\n[{rest:,} more characters]"


def _rounds(sources: ReportSources) -> dict[str, str]:
    """Return the round of each model that rounds.csv names."""
    return {str(row["model"]): str(row.get("round") or "") for row in sources.rounds}


def _drawn(artifact: Artifact, most: int, rounds: dict[str, str]) -> Iterator[Row]:
    """Yield rows of an artifact, chosen by the seed; the same rows are chosen again."""
    frame = artifact.scan().with_row_index("place")
    places = pl.int_range(artifact.manifest.rows, eager=True).sample(most, seed=SEED)
    rows = frame.filter(pl.col("place").is_in(places.sort().implode())).drop("place").collect()
    make = {"evaluations": _evaluation, "responses": _response}.get(artifact.kind, _pair)
    for row in rows.iter_rows(named=True):
        yield make(row, rounds) | {"artifact": artifact.reference}


def _evaluation(row: Row, rounds: dict[str, str]) -> Row:
    details = _details(row["details"])
    score = "" if row["score"] is None else f", score {row['score']:.2f}"
    outcome = details.get("outcome")
    texts = [
        ("prompt", details.get("prompt")),
        ("what the model was asked", row["attacked_prompt"]),
        ("answer", row["response"]),
    ]
    refused = str(outcome) if row["refused"] is None and outcome else _refused(row["refused"])
    return _example(
        "evaluation",
        f"{row['prompt_id']}: {short(row['benchmark'])}, attack {short(row['attack'])}, refused {refused}, "
        f"judged by {short(row['judge'])}{score}",
        texts,
        task=row["task"],
        round=_round_of(row["model"], rounds),
        attack=row["attack"],
        refused=refused,
        model=row["model"],
    )


def _response(row: Row, rounds: dict[str, str]) -> Row:
    score = "" if row["score"] is None else f", PRM score {row['score']:.2f}"
    return _example(
        "response",
        f"{row['prompt_id']}: {row['method'].replace('_', ' ')}, {row['completion_tokens']:,} tokens{score}",
        [("prompt", row["prompt"]), ("answer", row["text"])],
        task=row["task"],
        round=_round_of(row["model"], rounds),
        attack="none",
        refused=_refused(is_refusal(row["text"])),
        model=row["model"],
    )


def _pair(row: Row, _: dict[str, str]) -> Row:
    length = row["prefix_length"]
    return _example(
        "preference pair",
        f"{row['pair_id']}: depth {row['depth']}, {row['chosen_value']:+.2f} against {row['rejected_value']:+.2f}",
        [
            ("prompt", row["prompt"]),
            ("shared beginning", row["chosen"][:length]),
            ("chosen", row["chosen"][length:]),
            ("rejected", row["rejected"][length:]),
        ],
        task=row["task"],
        round=None if row["round"] is None else str(row["round"]),
    )


def _example(kind: str, label: str, texts: Sequence[tuple[str, Any]], **columns: str | None) -> Row:
    shown = [[name, text] for name, text in texts if isinstance(text, str) and text]
    named = {name: short(columns.get(name) or "not known") for name in FILTERS}
    return {**named, "kind": kind, "label": visible(label), "texts": shown}


def _refused(refused: bool | None) -> str:
    return "not known" if refused is None else "yes" if refused else "no"


def _round_of(model: str, rounds: dict[str, str]) -> str | None:
    return rounds.get(model.partition("@")[0]) or None


def _details(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
