"""What every section of a recipe is, and the values that several share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from stairdata_schemas.secrets.urls import url_credentials

Share = Annotated[float, Field(ge=0, le=1)]
Task = Literal["safety", "helpfulness"]
Concurrency = Annotated[int, Field(ge=1)] | Literal["auto"]
SECRET = "secret"  # noqa: S105 - the type of an error
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
    def _no_credentials(cls, value: Any) -> Any:
        for text in _texts(value):
            held = url_credentials(text) if "://" in text else None
            if held is not None:
                raise secret_error(f"the URL holds {held}")
        return value


class Sampling(Section):
    """How a model samples."""

    temperature: float = Field(1.2, ge=0)
    """0 is greedy."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling; 1 turns it off (on CPU it is vLLM's bottleneck)."""
    top_k: int = Field(50, ge=0)
    """0 turns it off; sent only to servers that are not OpenAI's."""


def _texts(value: Any, depth: int = 3) -> Iterator[str]:
    """Yield the texts of a value before it is read, as deep as a field outside a section of its own can be."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner, depth - 1)
