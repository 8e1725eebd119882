"""What a search asks of a process reward model (PRM), whoever answers: a model in this process or a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from stairdata_schemas.rendering import Conversation


class ScoreItem(NamedTuple):
    """An answer, or the beginning of one, whose steps are to be scored."""

    prompt: str | Conversation
    """One user turn, as in training, or several turns."""
    text: str
    """The assistant's text from its start."""
    is_complete: bool
    """It ended by itself, so that its last score is read behind the end-of-turn token; a part of an answer, or one that
    was cut, is read as it stands."""
    known: int = 0
    """Steps at its start that have their scores already."""


class StepScores(NamedTuple):
    """Rewards r(x, z) of the beginnings of answers, higher is better; they have no fixed range."""

    values: list[list[float]]
    """For each item the scores behind its steps, without those that are known; the last is the score of the text."""
    calls: int = 0
    """Forward passes, or sequences sent to a server."""
    tokens: int = 0
    """Tokens of those, before any are found again in a cache."""


class Scorer(Protocol):
    """A process reward model; many searches may ask at the same time, and a scorer joins what waits into batches."""

    async def score(self, items: Sequence[ScoreItem]) -> StepScores:
        """Score items, in their order.

        Raises:
            RequestFailedError: an item can't be scored, say because it is too long for the model.
            ServerError: the model is gone.
        """
        ...
