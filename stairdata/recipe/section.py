"""What every section of a recipe is, and the values that several share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Task = Literal["safety", "helpfulness"]
Concurrency = Annotated[int, Field(ge=1)] | Literal["auto"]
MOST = 2**63 - 1
"""The largest number that a column of whole numbers holds."""


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors.

    Text is expected in many places, and a number there is its words: `model: 4` is the model "4".

    A field is part of an artifact's fingerprint unless it is marked (`stairdata_schemas.fingerprints`).
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )


class Sampling(Section):
    """How a model samples."""

    temperature: float = Field(1.2, ge=0)
    """0 is greedy."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling; 1 turns it off (on CPU it is vLLM's bottleneck)."""
    top_k: int = Field(50, ge=0)
    """0 turns it off; sent only to servers that are not OpenAI's."""
