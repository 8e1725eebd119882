"""One sample of a harness: a prompt, an answer, and what its scorers said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stairdata_schemas.aliases import Row


class HarnessScore(NamedTuple):
    """What one scorer said."""

    judge: str
    score: float | None
    """0 to 1, higher is better; None where the scorer's value is no such number."""
    refused: bool | None = None
    details: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class HarnessSample:
    """An answered and scored prompt of a log."""

    benchmark: str
    model: str
    sample_key: str
    """Tells the prompt's answers in one run from all others."""
    sample: int
    """Which of the answers to the prompt, from 0."""
    prompt: str
    """As the data set has it."""
    sent: str | None
    """What the model was sent, where that is known and differs."""
    response: str
    is_cut: bool
    scores: list[HarnessScore]
    task: str | None = None
    details: Row = field(default_factory=dict)


class BrokenSampleError(Exception):
    """A sample that can't become rows: the rule it breaks, and where."""

    def __init__(self, rule: str, where: str = "") -> None:
        self.rule = rule
        self.where = where
        super().__init__(rule)


def unit_number(value: Any) -> float | None:
    """Return a number from 0 to 1, also a boolean; None for anything else."""
    if not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value <= 1 else None


def text_of(content: Any, where: str) -> str:
    """Return the text of a chat message: a text, or its parts of text joined.

    Raises:
        BrokenSampleError: it has parts of another kind, such as a picture.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BrokenSampleError("wrong_type", where)
    parts = [part for part in content if not (isinstance(part, dict) and part.get("type") == "reasoning")]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise BrokenSampleError("not_text", where)
    return "".join(part["text"] for part in parts)


def users_text(messages: Any, where: str, *, few_shot: bool = False) -> str:
    """Return the user turn of a conversation.

    Args:
        messages: the conversation.
        where: it stands.
        few_shot: turns before the last one are examples; otherwise there has to be one alone.

    Raises:
        BrokenSampleError: there is none, or there are several.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BrokenSampleError("wrong_type", where)
    turns = [message for message in messages if message.get("role") == "user"]
    if not turns or (len(turns) > 1 and not few_shot):
        raise BrokenSampleError("several_turns" if turns else "no_user_turn", where)
    return text_of(turns[-1].get("content"), where)
