"""One training, described before torch is imported: what decides its result, and whether it is finished."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import TrainingError, quote
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import sha256_of_json
from stairdata_schemas.rendering import model_hash
from stairdata_training import output as outputs
from stairdata_training.config import TRAINED_ON, TRAINERS, TrainingConfig
from stairdata_training.output import TrainingSummary

if TYPE_CHECKING:
    from datasets import Dataset


def processes_here() -> int:
    """Return how many processes torchrun or accelerate has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, on what, from what, and to where.

    Raises:
        TrainingError: the method trains on another kind of artifact.
    """

    method: str
    """sft, dpo or prm."""
    data: Artifact | Dataset
    """An artifact, or rows with the columns of its kind."""
    model: str | Path
    """Model folder or Hub id to start from."""
    output: Path
    config: TrainingConfig
    """Settings of that method."""
    evaluation: Artifact | Dataset | None = None
    """Held-out pairs on which the finished model is measured; they do not change it."""
    fresh: bool = False
    """Replace unfinished work, and a model of other data or settings."""
    processes: int = field(default_factory=processes_here)

    def __post_init__(self) -> None:
        kind = TRAINED_ON[self.method]
        if isinstance(self.data, Artifact) and self.data.kind != kind:
            raise TrainingError(
                f"{self.method} trains on {kind}, not on {quote(self.data.reference)}; give an artifact of that kind"
            )
        if self.evaluation is None:
            return
        if self.method == "sft":
            raise TrainingError("train sft has no measures on held-out rows; leave the rows to evaluate on out")
        if isinstance(self.evaluation, Artifact) and self.evaluation.kind != kind:
            raise TrainingError(
                f"{self.method} is measured on {kind}, not on {quote(self.evaluation.reference)}; give an artifact of "
                "that kind"
            )

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, however it is split into forward passes and processes."""
        return self.config.batch_size * self.config.gradient_accumulation * self.processes

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the result. Kept, because a model's weights take their time to hash."""
        start = model_hash(Path(self.model)) if Path(self.model).is_dir() else str(self.model)
        return {
            "trainer": TRAINERS[self.method],
            "settings": counted_settings(self.config) | {"rows_per_step": self.rows_per_step},
            "data": _content_hash(self.data),
            "start_model": start,
        }

    @property
    def fingerprint(self) -> str:
        """The hash of the identity."""
        return sha256_of_json(self.identity)

    def rows(self) -> Dataset:
        """Return the rows to train on."""
        return _rows(self.data)

    def evaluation_rows(self) -> Dataset:
        """Return the rows to measure on; there have to be some."""
        assert self.evaluation is not None
        return _rows(self.evaluation)

    @cached_property
    def evaluation_hash(self) -> str | None:
        """The hash of the rows to measure on; None without any."""
        return None if self.evaluation is None else _content_hash(self.evaluation)

    def warnings(self) -> list[str]:
        """Return what looks like a mistake in the choice of data and model.

        DPO's reference is to be the actor that wrote the steps. A PRM may start from a later one, as in the paper.
        """
        actor = self.data.manifest.actor if isinstance(self.data, Artifact) else None
        if self.method != "dpo" or actor is None or actor.revision is None or not Path(self.model).is_dir():
            return []
        if actor.revision == self.identity["start_model"]:
            return []
        return [
            f"the pairs come from trees of {quote(actor.name)} ({actor.revision}), and {quote(Path(self.model).name)} "
            f"is another model ({self.identity['start_model']}); DPO is meant to start from the actor that wrote the "
            "steps"
        ]

    def finished(self) -> TrainingSummary | None:
        """Return the summary of this training if its output is there; a look before torch is imported.

        Raises:
            BuildLockedError: another process trains into the folder.
            TrainingError: the output folder holds something that no training wrote, or that of another training.
            ModelError: the folder to start from holds no model.
        """
        with outputs.locked(self.output.absolute()):
            done = outputs.finished(self.output.absolute(), self.identity, fresh=self.fresh)
            return done if self.is_measured() else None

    def is_measured(self) -> bool:
        """Return whether the finished model's record has the measures that are asked for."""
        if self.evaluation is None:
            return True
        held_out = outputs.read_record(self.output).get("held_out")
        return isinstance(held_out, dict) and held_out.get("content_hash") == self.evaluation_hash


def _rows(data: Artifact | Dataset) -> Dataset:
    return data.dataset() if isinstance(data, Artifact) else data


def _content_hash(data: Any) -> str:
    """Hash the rows; an artifact's manifest has their hash already."""
    if isinstance(data, Artifact):
        return data.manifest.content_hash
    digest = hashlib.sha256()
    for row in data:
        digest.update(sha256_of_json(row).encode())
    return digest.hexdigest()
