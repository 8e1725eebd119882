"""Stage `responses`: answers of the actor, and test-time search."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stairdata.recipe.section import Concurrency, Sampling
from stairdata_schemas.fingerprints import Mark


class ResponsesSection(Sampling):
    """Stage `responses`: answers of the actor, and test-time search."""

    method: Literal["sample", "best_of_n"] = "sample"
    """sample: one answer. best_of_n: n answers, of which the one with the best PRM score is kept."""
    n: int = Field(1, ge=1)
    """Answers per prompt."""
    prm: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder of the process reward model that scores."""
    max_tokens: int = Field(2048, ge=1)
    """Tokens of one answer."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_RESULT] = "auto"
    """Prompts in flight at most; auto: one is begun whenever the server could take one more request."""

    @model_validator(mode="after")
    def _best_needs_a_judge(self) -> Self:
        if self.method == "best_of_n" and self.prm is None:
            raise ValueError("best_of_n needs a prm")
        return self
