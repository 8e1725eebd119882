"""What every section of a recipe is, and the values that several share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from stairdata_schemas.secrets.urls import url_credentials

Share = Annotated[float, Field(ge=0, le=1)]
Task = Literal["safety", "helpfulness"]
Concurrency = Annotated[int, Field(ge=1)] | Literal["auto"]
SECRET = "secret"  # noqa: S105 - the type of an error
UNNAMED = ""
"""Tag of the one section among the forms of a key; a mistake in it is named without a tag."""
MOST = 2**63 - 1
"""The largest number that a column of whole numbers holds."""


def secret_error(what: str) -> PydanticCustomError:
    """Return the error of a value that is, or holds, a secret; messages do not show the value."""
    remedy = "leave it out, put the key into an environment variable, and give that variable's name as api_key_env"
    return PydanticCustomError(SECRET, "{what}; {remedy}", {"what": what, "remedy": remedy})


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors.

    Text is expected in many places, and a number there is its words: `model: 4` is the model "4".

    A field is part of an artifact's fingerprint unless it is marked (`stairdata_schemas.fingerprints`).

    No value is a URL with a password or key in it: recipes go into manifests, messages and repositories.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        hide_input_in_errors=True,  # pydantic's own words, which a traceback shows
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_credentials_as_typed(cls, value: Any) -> Any:
        # a path would no longer look like a URL; the values of a section are told by their own names
        return value if isinstance(value, dict) else _without_credentials(value, depth=1)

    @field_validator("*")
    @classmethod
    def _no_credentials_inside(cls, value: Any) -> Any:
        return _without_credentials(value, depth=3)


class Sampling(Section):
    """How a model samples."""

    temperature: float = Field(1.2, ge=0)
    """0 is greedy."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling; 1 turns it off (on CPU it is vLLM's bottleneck)."""
    top_k: int = Field(50, ge=0)
    """0 turns it off; sent only to servers that are not OpenAI's."""


def _without_credentials(value: Any, depth: int) -> Any:
    """Return a value as it is if no text in it is a URL with credentials; sections inside it look at their own."""
    if isinstance(value, str):
        held = url_credentials(value) if "://" in value else None
        if held is not None:
            raise secret_error(f"the URL holds {held}")
    elif depth and isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            _without_credentials(inner, depth - 1)
    return value
