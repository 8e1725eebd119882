"""How DPO's policies and the process reward model rank held-out pairs, beside rules that know lengths alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stairdata.generators.pairs.label_noise import label_noise
from stairdata.pipeline.model_folders import held_out_measures
from stairdata_schemas.aliases import Json
from stairdata_schemas.artifacts import Artifact

from .lines import Line


class PairAccuracy(NamedTuple):
    """A model's ranking of held-out pairs."""

    model: str
    accuracy: Json
    """value, low, high, prompts, rows: as its training.json says."""
    length_rule: Json
    """prefers (longer or shorter, by tokens), and its accuracy, likewise."""
    length_correlation: float | None
    """Of DPO's margins with how many more tokens the chosen step has; None for a process reward model."""
    pairs: int
    """It was trained on."""
    in_order: Json | None
    """The share of these pairs that are in the order of true values, as trees tell: value, low, high."""

    def as_json(self) -> Json:
        """Return what results.json holds."""
        return {
            "model": self.model,
            "accuracy": self.accuracy,
            "length_rule": self.length_rule,
            "length_correlation": self.length_correlation,
            "trained_on": self.pairs,
            "in_order": self.in_order,
        }


def pair_accuracies(line: Line) -> list[PairAccuracy]:
    """Measure what a run has of them."""
    trainings: list[tuple[str, str, str, int | None]] = [
        (f"dpo-{number}", "train dpo", "preference_pairs", number) for number in range(1, line.recipe.rounds.count + 1)
    ]
    found = []
    for model, stage, kind, number in [*trainings, ("prm", "train prm", "prm_pairs", None)]:
        folder, pairs = line.model(stage, number), line.artifact(f"{kind} (held out)", number)
        trees = trees_of(line, number)
        accuracy = accuracy_of(model, folder, pairs, trees) if folder is not None and pairs is not None else None
        found += [accuracy] if accuracy is not None else []
    return found


def trees_of(line: Line, number: int | None) -> list[Artifact]:
    """Return the trees that an actor grew in a round, both parts; None: in the last one."""
    number = line.recipe.rounds.count if number is None else number
    found = [line.artifact(f"trees{part}", number) for part in ("", " (held out)")]
    return [each for each in found if each is not None]


def accuracy_of(model: str, folder: Path, pairs: Artifact, trees: Sequence[Artifact]) -> PairAccuracy | None:
    """Read a model's accuracy on pairs; None where it was not measured on them.

    Args:
        model: what it is called.
        folder: of the model.
        pairs: held-out ones.
        trees: by the actor that grew those of the pairs.
    """
    measures: dict[str, Any] | None = held_out_measures(folder, pairs.manifest.content_hash)
    if measures is None:
        return None
    from stairdata_training.output import read_record

    trained_on = read_record(folder)["summary"]["rows"]
    along = measures.get("length_correlation")
    share = label_noise(trees, pairs).share_in_order()
    in_order = None if share is None else share.as_json()
    return PairAccuracy(model, measures["accuracy"], measures["length_rule"], along, trained_on, in_order)
