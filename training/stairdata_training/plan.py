"""One training, described before torch is imported: what decides its result, and whether it is finished."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import TrainingError, quote
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.manifest import sha256_of_json
from stairdata_schemas.rendering import model_hash
from stairdata_training import output as outputs
from stairdata_training.config import TRAINED_ON, TrainingConfig
from stairdata_training.output import TrainingSummary

if TYPE_CHECKING:
    from datasets import Dataset

# The command line used to count this key. Its default stands in for it, whatever its value, so that models that were
# finished with the default are still found.
_COUNTED_ONCE = {"checkpoint_steps": 500}


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

    def __post_init__(self) -> None:
        kind = TRAINED_ON[self.method]
        if isinstance(self.data, Artifact) and self.data.kind != kind:
            raise TrainingError(
                f"{self.method} trains on {kind}, not on {quote(self.data.reference)}; give an artifact of that kind"
            )

    @cached_property
    def fingerprint(self) -> str:
        """The hash of all that decides the result: method, settings, content of the data, and the start model.

        Kept, because a model's weights take their time to hash.
        """
        settings = counted_settings(self.config)
        start = model_hash(Path(self.model)) if Path(self.model).is_dir() else str(self.model)
        return sha256_of_json([self.method, settings | _COUNTED_ONCE, _content_hash(self.data), start])

    def rows(self) -> Dataset:
        """Return the rows to train on."""
        return self.data.dataset() if isinstance(self.data, Artifact) else self.data

    def finished(self) -> TrainingSummary | None:
        """Return the summary of this training if its output is there.

        Raises:
            TrainingError: the output folder holds something that no training wrote.
            ModelError: the folder to start from holds no model.
        """
        return outputs.finished(self.output, self.fingerprint)


def _content_hash(data: Any) -> str:
    """Hash the rows; an artifact's manifest has their hash already."""
    if isinstance(data, Artifact):
        return data.manifest.content_hash
    digest = hashlib.sha256()
    for row in data:
        digest.update(sha256_of_json(row).encode())
    return digest.hexdigest()
