"""What a run has left behind: its stages, and the answers of its models as tables without texts of prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stairdata.pipeline.dry_run import finished_stages
from stairdata.pipeline.measures import first_candidates, word_overlaps
from stairdata.stages import FullRecipe
from stairdata.statistics.reductions import Reduced
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact, open_artifact
from stairdata_schemas.grammar import is_grammatical
from stairdata_schemas.text.words import words

from .items import Item
from .place import MainSettings, ProofPlace
from .recipes import recipe_of
from .running import finished_record, item_recipe, run_options

XSTEST, HARMFUL, SUMS = "xstest", "do-not-answer", "gsm8k"
PHRASE, TIMES = 4, 4
"""An answer repeats itself if some phrase of so many words stands in it so many times."""


class Answers(NamedTuple):
    """A model's answers to the benchmarks."""

    model: str
    """As a stage calls it: base, sft, dpo-1, or with a search: `dpo-3, best of 4`."""
    rows: pl.DataFrame
    """prompt_id, benchmark, label, refused, score, outcome, grammatical, repeats, sample, prm_score, characters."""
    tokens: float
    """Sampled for a prompt, on average."""
    artifact: Artifact


class Line(NamedTuple):
    """A run."""

    name: str
    """Its seed, or the name of an item."""
    recipe: FullRecipe
    stages: Sequence[Json]
    """Finished ones, as summary.json has them."""
    folder: Path
    """Of its artifacts and models."""

    def artifact(self, stage: str, number: int | None = None) -> Artifact | None:
        """Return what a stage has made; None where it has not run."""
        found = self._stage(stage, number)
        if found is None:
            return None
        kind, _, version = found["artifact"].partition("@")
        return open_artifact(self.folder / "artifacts" / kind / version)

    def model(self, stage: str, number: int | None = None) -> Path | None:
        """Return the folder that a training has made; None where it has not run."""
        found = self._stage(stage, number)
        return None if found is None else self.folder / "models" / Path(found["model"]).name

    def _stage(self, stage: str, number: int | None) -> Json | None:
        numbers = {number} if number is not None else {None, *range(1, self.recipe.rounds.count + 1)}
        return next((each for each in self.stages if each["stage"] == stage and each.get("round") in numbers), None)

    @property
    def models(self) -> list[str]:
        """Models whose answers to the benchmarks are there, in order."""
        names = [each["stage"] for each in self.stages if each["stage"].startswith("evaluations (")]
        return [name.removeprefix("evaluations (").removesuffix(")") for name in names]

    def answers(self, model: str) -> Answers:
        """Read a model's answers to the benchmarks."""
        artifact = self.artifact(f"evaluations ({model})")
        assert artifact is not None, "one of `models`"
        return read_answers(model, artifact)

    def overlaps(self, model: str) -> Reduced | None:
        """Return word F1 with the reference answers of held-out prompts; None where nothing was answered."""
        answers, prompts = self.artifact(f"responses ({model})"), self.artifact("prompts (held out)")
        if answers is None or prompts is None:
            return None
        found = word_overlaps(first_candidates(answers), prompts)
        return Reduced(pl.Series([f1 for _, f1 in found], dtype=pl.Float64).to_numpy(), [each for each, _ in found])


def main_line(place: ProofPlace, settings: MainSettings) -> Line:
    """Find what is finished of the main line."""
    recipe = recipe_of(place, settings)
    stages = finished_record(place.main, recipe)
    if stages is None:
        stages = finished_stages(recipe, run_options(place.main))
    return Line(str(recipe.seed), recipe, stages, place.main)


def line_of_item(place: ProofPlace, settings: MainSettings, item: Item) -> Line | None:
    """Return a finished item; None where it has not run by the present recipe."""
    recipe = item_recipe(place, settings, item)
    stages = finished_record(place.record(item), recipe)
    if stages is None:
        return None
    is_seed = item.has_own_folder
    return Line(
        str(recipe.seed) if is_seed else item.name, recipe, stages, place.record(item) if is_seed else place.main
    )


def read_answers(model: str, artifact: Artifact) -> Answers:
    """Read an artifact of evaluations."""
    columns = ("prompt_id", "benchmark", "response_id", "sample", "response", "refused", "score", "details")
    rows = []
    for row in artifact.scan().select(columns).collect().iter_rows(named=True):
        details, text = json.loads(row.pop("details")), row.pop("response")
        kept = {name: details.get(name) for name in ("label", "outcome", "prm_score")}
        told = {"grammatical": is_grammatical(text), "repeats": repeats_itself(text), "characters": len(text)}
        rows.append(row | kept | told)
    schema = {
        "refused": pl.Boolean, "score": pl.Float64, "label": pl.String, "outcome": pl.String, "prm_score": pl.Float64,
    }  # fmt: skip
    frame = pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)
    asked = max(frame["response_id"].n_unique(), 1)  # a prompt in two benchmarks is asked once
    return Answers(model, frame, artifact.manifest.usage.completion_tokens / asked, artifact)


def repeats_itself(text: str) -> bool:
    """Return whether some phrase of four words stands in a text four times or more; phrases may overlap."""
    said = [*words(text)]
    phrases = Counter(tuple(said[place : place + PHRASE]) for place in range(len(said) - PHRASE + 1))
    return max(phrases.values(), default=0) >= TIMES
