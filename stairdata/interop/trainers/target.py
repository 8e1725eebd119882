"""What the module of a trainer says about it: which kinds it takes, how it reads a row, what configures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import yaml

from stairdata.examples.reading import Example
from stairdata_schemas.aliases import Json, Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.rendering import RenderedPrompt, Tokenizer, render_prompt
from stairdata_schemas.templating.control_tokens import find_outside_grammar

T = TypeVar("T")


class Data(NamedTuple):
    """The file of rows that a configuration names."""

    file: str
    limit: int
    """Tokens that no row exceeds: a trainer's own limit would cut or drop longer ones in silence."""

    @property
    def format(self) -> str:
        """What `datasets` calls the format."""
        return "parquet" if self.file.endswith(".parquet") else "json"


class UnsayableError(Exception):
    """A text spells control tokens, and this form can't say that they are plain text."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a trainer reads one kind."""

    columns: str
    """What a row holds, for the README."""
    row: Callable[[Any], Row]
    """Makes a row of an example; raises UnsayableError."""
    files: Callable[[Data], dict[str, str]]
    """The trainer's own configuration, by file name."""
    command: str
    ends: str
    """Where end tokens fall, for the README."""
    ends_every_text: bool = True
    """The trainer puts its end token behind each text, half-written answers included."""
    read: Callable[[Artifact, float], Iterator[Example]] | None = None
    """Reads the examples, given the threshold of labels; None: answers or pairs, as they stand."""


@dataclass(frozen=True, slots=True)
class Target:
    """A trainer."""

    name: str
    """After `--to`."""
    title: str
    url: str
    """Where its format is documented."""
    forms: Mapping[str, Form]
    """By kind."""
    continued: Mapping[str, Callable[[Tokenizer], Form]] = field(default_factory=dict)
    """By kind, the form in which it can go on with a half-written turn; that needs the model's tokenizer."""
    suffixes: tuple[str, ...] = (".jsonl", ".parquet")
    """Of files of rows that it reads; the first is written into a folder."""


def by_kind(sft: T, dpo: T, reward: T) -> dict[str, T]:
    """Return what serves each kind: answers are for SFT, step pairs for DPO, PRM pairs for a reward model."""
    return {"structured_cot": sft, "responses": sft, "preference_pairs": dpo, "prm_pairs": reward}


def as_yaml(values: Json) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def rendered(tokenizer: Tokenizer, prompt: str, *texts: str) -> RenderedPrompt:
    """Render a prompt, after a look at the texts that follow it.

    Raises:
        UnsayableError: one of the texts holds control tokens other than the grammar's tags, which would end turns.
    """
    if any(find_outside_grammar(tokenizer, text) for text in texts):
        raise UnsayableError
    return render_prompt(tokenizer, prompt)
