"""A model that is asked: where it is, and how it is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from stairdata.recipe.section import Concurrency, Section, secret_error
from stairdata_schemas.fingerprints import Mark
from stairdata_schemas.secrets.shapes import is_shape_of_secret, looks_like_key
from stairdata_schemas.secrets.urls import url_credentials

ControlTokens = Literal["plain", "neutralise", "refuse"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ServedType = Literal["auto", "bfloat16", "float16", "float32"]

MOST_GPU_MEMORY = 0.95
"""Share of a GPU's memory that servers may have together; its driver and other programs take the rest."""
SET_BY_US = frozenset(
    {
        "model", "messages", "prompt", "n", "seed", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "top_k", "stop", "logprobs", "top_logprobs", "response_format", "reasoning_effort", "skip_special_tokens",
        "include_stop_str_in_output", "add_special_tokens", "stream", "stream_options", "best_of", "echo",
    }
)  # fmt: skip
"""Of a request: what is written by other keys or follows from the build, and what would give an answer of a form that
is not read."""


class ModelServer(Section):
    """Where a model is, and how its server is asked."""

    path: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """A model folder or Hub id, served for the duration of the build."""
    base_url: Annotated[str | None, Mark.CANNOT_CHANGE_RESULT] = None
    """An OpenAI-compatible server instead, such as http://127.0.0.1:8000/v1."""
    model: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """The server's name for the model; needed with base_url."""
    tokenizer: Annotated[str | None, Mark.COUNTS_AS_MODEL] = None
    """Folder or Hub id of the tokenizer whose chat template renders prompts; default: path."""
    api_key_env: Annotated[str, Mark.CANNOT_CHANGE_RESULT] = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never in a recipe."""
    concurrency: Annotated[Concurrency, Mark.CANNOT_CHANGE_RESULT] = "auto"
    """Requests in flight at most. auto: as many as make the server faster, up to 512. Either way fewer while it
    reports that it is overloaded."""
    timeout: Annotated[float, Mark.CANNOT_CHANGE_RESULT] = Field(600, gt=0)
    """Seconds a request may take, from connecting to the last byte of its answer; files of the Batch API have a second
    more for each 64 KiB."""
    retries: Annotated[int, Mark.CANNOT_CHANGE_RESULT] = Field(8, ge=0)
    """How often a failed request is sent again, with exponential back-off."""
    retry_seconds: Annotated[float, Mark.CANNOT_CHANGE_RESULT] = Field(900, ge=0)
    """Seconds after which a failed request is not sent again; a server that asks for a longer wait stops the build."""
    max_model_len: Annotated[int, Mark.COUNTS_WHERE_SERVED] = Field(4096, ge=64)
    """Context length of the served model, in tokens: prompt and answer together."""
    port: Annotated[int, Mark.CANNOT_CHANGE_RESULT] = Field(0, ge=0, le=65535)
    """Port of the served model; 0 takes a free one."""
    gpu_memory: Annotated[float | None, Mark.CANNOT_CHANGE_RESULT] = Field(None, gt=0, le=MOST_GPU_MEMORY)
    """Share of a GPU's memory for the served model. Default: almost all of it; where the actor and a process reward
    model share one, 0.55 for the actor and 0.35 for the other, or what is left."""

    @property
    def name(self) -> str:
        """What prices and rows call the model: its name at the server, or the last part of its folder."""
        return self.model or Path(self.path or "").name

    @field_validator("base_url")
    @classmethod
    def _no_login(cls, value: str | None) -> str | None:
        held = url_credentials(value) if value is not None else None  # also without a scheme: me:word@host/v1
        if held is not None:
            raise secret_error(f"the URL holds {held}")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if looks_like_key(value):
            raise secret_error("this looks like a key, not like the name of a variable")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.path and self.base_url:
            raise ValueError("give either path (served here) or base_url (served elsewhere), not both")
        return self


class Endpoint(ModelServer):
    """A model that writes: a folder or Hub id, served by vLLM for the duration of a build, or the URL of a server."""

    dtype: Annotated[ServedType, Mark.COUNTS_WHERE_SERVED] = "auto"
    """Number format of the served model's weights and arithmetic. auto: the folder's own, where float32 is served as
    bfloat16; on a CPU that has no instructions for bfloat16, float32, which is more than twice as fast there."""
    enforce_eager: Annotated[bool | None, Mark.CANNOT_CHANGE_RESULT] = None
    """Serve the model without compiling it first. Default: true on a CPU, false on a GPU. On a CPU compiling costs one
    to two minutes at each start of a server, and made SmolLM2-135M write 1.6 times as many tokens a second."""
    control_tokens: Annotated[ControlTokens, Mark.COUNTS_UNLESS_DEFAULT] = "plain"
    """What becomes of the control tokens of chat templates, such as <|im_end|>, in a prompt or in an answer that is
    quoted: they must not end or begin a turn. plain: the model reads them as plain text; the actor, and the actor as
    judge, are sent token ids where a prompt holds some, and in a chat message they are neutralised, but for the attack
    `tags`, which is sent as it is. neutralise: a space is written behind their first character, for an actor's server
    that takes no token ids. refuse: the prompt is refused."""
    reasoning_effort: Annotated[ReasoningEffort | None, Mark.COUNTS_UNLESS_DEFAULT] = None
    """How much a model that thinks may think, as its server understands the word; sent with each chat request, where it
    is given. Not for the actor, nor for another model that is asked by completions: their prompts are rendered here."""
    extra_body: Annotated[dict[str, JsonValue], Mark.COUNTS_UNLESS_DEFAULT] = {}
    """More of each request's body, as it is, for what only some servers know: {chat_template_kwargs: {enable_thinking:
    false}}. What other keys of a recipe set, such as model, n, seed, temperature, is refused here."""

    @field_validator("extra_body")
    @classmethod
    def _is_not_ours(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        ours = sorted(SET_BY_US & value.keys())
        if ours:
            raise ValueError(f"{', '.join(ours)} can't be set here; leave it out, other keys of the recipe decide it")
        json.dumps(value, allow_nan=False)  # YAML has numbers that JSON has not
        if any(_is_secret(text) for text in _texts(value)):
            raise secret_error("a text in it looks like a key")
        return value


def _texts(value: JsonValue) -> Iterator[str]:
    """Yield the texts in a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _is_secret(text: str) -> bool:
    # word by word: the versions and dates in names of models alternate letters and digits as keys do
    is_key = is_shape_of_secret(text) or any(map(looks_like_key, re.findall(r"[A-Za-z0-9]+", text)))
    return is_key or url_credentials(text) is not None
