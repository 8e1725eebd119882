"""What a model's answers to the held-out prompts are like, and what its training said of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.pipeline.model_folders import held_out_measures
from stairdata.recipe import Measure
from stairdata.search.refusal import is_refusal
from stairdata.search.reward import word_f1
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.grammar import final_answer, is_grammatical

Measures = dict[str, float | None]
ACCURACY = "rewards/accuracies"  # TRL's name: the share of a batch's pairs whose chosen side has the higher reward
LAST_SHARE = 10


def answer_measures(answers: Artifact, prompts: Artifact) -> Measures:
    """Measure single answers.

    Word F1 is that with the reference answer, over the prompts that have one that is not unsafe.
    """
    rows = first_candidates(answers)
    return {
        "grammar": mean([is_grammatical(row["text"]) for row in rows]),
        "refusals_safety": mean(_refusals(rows, "safety")),
        "refusals_helpfulness": mean(_refusals(rows, "helpfulness")),
        "word_f1": mean([f1 for _, f1 in word_overlaps(rows, prompts)]),
        "mean_tokens": mean([row["tokens"] for row in rows]),
    }


def word_overlaps(rows: Sequence[Row], prompts: Artifact) -> list[tuple[str, float]]:
    """Return the word F1 of answers with the reference answer, of each prompt that has one that is not unsafe.

    Args:
        rows: answers, with prompt_id and text.
        prompts: that they answer.

    Returns:
        prompt_id and F1, in the order of the answers.
    """
    references = {
        row["prompt_id"]: row["reference_answer"]
        for row in prompts.scan().select("prompt_id", "reference_answer", "reference_is_safe").collect().to_dicts()
        if row["reference_answer"] and row["reference_is_safe"] is not False
    }
    return [
        (row["prompt_id"], word_f1(final_answer(row["text"]), references[row["prompt_id"]]))
        for row in rows
        if row["prompt_id"] in references
    ]


def evaluation_measures(evaluations: Artifact) -> Measures:
    """Read which share of a model's answers to the benchmarks' prompts were refusals, where no prompt was attacked.

    Cut and empty answers, of which nothing is known, are left out, and so is what the judge could not tell.
    """
    known = (
        evaluations.scan()
        .filter((pl.col("attack") == "none") & pl.col("refused").is_not_null())
        .select("task", "refused")
        .collect()
    )
    refused = {task: known.filter(pl.col("task") == task)["refused"].to_list() for task in ("safety", "helpfulness")}
    return {"refused_harmful": mean(refused["safety"]), "refused_harmless": mean(refused["helpfulness"])}


def training_measures(model: Path) -> Measures:
    """Read what a DPO training measured, out of its training.json.

    The accuracy is that of the last tenth of the steps, on the pairs that are trained on.
    """
    try:
        metrics = json.loads((model / "training.json").read_text(encoding="utf-8")).get("metrics") or []
    except (OSError, ValueError, AttributeError):
        metrics = []
    logged = [entry[ACCURACY] for entry in metrics if isinstance(entry, dict) and ACCURACY in entry]
    return {"dpo_accuracy": mean(logged[-max(1, math.ceil(len(logged) / LAST_SHARE)) :])}


def accuracy_measures(model: Path, evaluation: Artifact | None) -> Measures:
    """Read how a model ranks held-out pairs, out of its training.json, with the interval of 95%."""
    found = evaluation and held_out_measures(model, evaluation.manifest.content_hash)
    if not found:
        return {}
    accuracy = found["accuracy"]
    return {
        "held_out_accuracy": _rounded(accuracy["value"]),
        "held_out_accuracy_low": _rounded(accuracy["low"]),
        "held_out_accuracy_high": _rounded(accuracy["high"]),
    }


def prm_measures(model: Path, evaluation: Artifact | None) -> dict[str, Any] | None:
    """Read how the process reward model ranks held-out pairs, beside the rule that knows lengths alone."""
    found = evaluation and held_out_measures(model, evaluation.manifest.content_hash)
    if not found:
        return None
    kept = ("accuracy", "accuracy_by_end", "accuracy_by_depth", "length_rule", "better_than_length", "left_out")
    return {name: found[name] for name in kept}


def broken_limit(measures: Measures, stop_below: Mapping[Measure, float]) -> tuple[Measure, float, float] | None:
    """Return the first measure that is below its limit, with its value and the limit; one without a value is not."""
    for name, limit in stop_below.items():
        value = measures.get(name)
        if value is not None and value < limit:
            return name, value, limit
    return None


def table_column(rows: Sequence[Row], scores: Sequence[float | None]) -> Measures:
    """Return a column of the summary's table.

    Args:
        rows: answers, with task, text and tokens.
        scores: of the PRM, one a row.
    """
    return {
        "answers": float(len(rows)),
        "in the grammar": mean([is_grammatical(row["text"]) for row in rows]),
        "refusals, safety prompts": mean(_refusals(rows, "safety")),
        "refusals, helpfulness prompts": mean(_refusals(rows, "helpfulness")),
        "mean PRM score": mean([score for score in scores if score is not None]),
        "mean tokens": mean([row["tokens"] for row in rows]),
    }


def first_candidates(answers: Artifact) -> list[Row]:
    """Return each prompt's first answer, which was sampled alone, with the prompt's columns."""
    return [row | row["candidates"][0] for row in _read(answers)]


def chosen_candidates(answers: Artifact) -> list[Row]:
    """Return the answer that was chosen for each prompt, with the prompt's columns."""
    return [row | row["candidates"][row["chosen_index"]] for row in _read(answers)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def mean(values: Sequence[float]) -> float | None:
    """Return the mean to three digits; None of nothing."""
    return round(sum(values) / len(values), 3) if values else None


def _read(answers: Artifact) -> list[dict[str, Any]]:
    wanted = ["prompt_id", "prompt", "task", "candidates", "chosen_index"]
    return answers.scan().select(wanted).collect().to_dicts()


def _refusals(rows: Sequence[Row], task: str) -> list[bool]:
    return [is_refusal(row["text"]) for row in rows if row["task"] == task]
