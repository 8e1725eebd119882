"""How DPO's policies and the process reward model rank held-out pairs, beside rules that know lengths alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stairdata.pipeline.model_folders import held_out_measures
from stairdata.statistics.intervals import MeanEstimate, estimate_mean
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact

from .lines import Line


class LengthRuleAccuracy(NamedTuple):
    """The better one of two rules: prefer the side with more characters, or the one with fewer; a tie counts half.

    It is chosen on the pairs on which it is measured, which favours it: it is what a model has to beat.
    """

    prefers: str
    accuracy: MeanEstimate


class PairAccuracy(NamedTuple):
    """A model's ranking of held-out pairs."""

    model: str
    accuracy: Json
    """value, low, high, prompts, rows: as its training.json says."""
    length_rule: LengthRuleAccuracy
    pairs: int
    """It was trained on."""

    def as_json(self) -> Json:
        """Return what results.json holds."""
        rule = {"prefers": self.length_rule.prefers, **self.length_rule.accuracy.as_json()}
        return {"model": self.model, "accuracy": self.accuracy, "length_rule": rule, "trained_on": self.pairs}


def pair_accuracies(line: Line) -> list[PairAccuracy]:
    """Measure what a run has of them."""
    trainings: list[tuple[str, str, str, int | None]] = [
        (f"dpo-{number}", "train dpo", "preference_pairs", number) for number in range(1, line.recipe.rounds.count + 1)
    ]
    found = []
    for model, stage, kind, number in [*trainings, ("prm", "train prm", "prm_pairs", None)]:
        folder, pairs = line.model(stage, number), line.artifact(f"{kind} (held out)", number)
        accuracy = accuracy_of(model, folder, pairs) if folder is not None and pairs is not None else None
        found += [accuracy] if accuracy is not None else []
    return found


def accuracy_of(model: str, folder: Path, pairs: Artifact) -> PairAccuracy | None:
    """Read a model's accuracy on pairs; None where it was not measured on them."""
    measures: dict[str, Any] | None = held_out_measures(folder, pairs.manifest.content_hash)
    if measures is None:
        return None
    from stairdata_training.output import read_record

    return PairAccuracy(model, measures["accuracy"], length_rule_of(pairs), read_record(folder)["summary"]["rows"])


def length_rule_of(pairs: Artifact) -> LengthRuleAccuracy:
    """Measure both rules on pairs, and return the better one."""
    rows = pairs.scan().select("prompt_id", "chosen", "rejected").collect()
    longer = rows.select(
        (pl.col("chosen").str.len_chars().cast(pl.Int64) - pl.col("rejected").str.len_chars().cast(pl.Int64))
        .sign()
        .cast(pl.Float64)
        .alias("sign")
    )["sign"]
    right, prompts = (longer + 1) / 2, rows["prompt_id"].to_list()
    mean = float(right.mean())  # type: ignore[arg-type]  # a mean of floats
    if mean >= 0.5:
        return LengthRuleAccuracy("longer", estimate_mean(right.to_list(), prompts))
    return LengthRuleAccuracy("shorter", estimate_mean((1 - right).to_list(), prompts))
