"""What a build would ask of models, as a value that a command prints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """Requests and tokens of one model."""

    role: str
    name: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = None
    """By the recipe's prices; None where the model has none."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a build would ask; without models and words it asks none."""

    kind: str
    words: str = ""
    """The forecast as it is printed, assumptions included."""
    models: tuple[ModelLoad, ...] = ()
    finished: str | None = None
    """Reference of the artifact, where the build is finished already."""

    def shown(self, *, json_: bool) -> str:
        """Return the forecast for a reader, or as one JSON object."""
        if json_:
            return json.dumps(asdict(self))
        if self.finished is not None:
            return f"{self.finished} is finished; there is nothing left to ask"
        return self.words or f"{self.kind}: asks no model"
