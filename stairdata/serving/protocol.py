"""What the server asks of a search, whoever searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stairdata_schemas.rendering import Conversation


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A conversation whose last turn is to be answered, and how."""

    conversation: Conversation
    seed: int
    max_tokens: int | None = None
    """Of one answer, at most; None, and more than the search allows, is what the search allows."""
    temperature: float | None = None
    """None is the search's own, as for `top_p`."""
    top_p: float | None = None


class ChosenAnswer(NamedTuple):
    """The answer that a search chose."""

    text: str
    """Of the assistant, as the model wrote it, without end-of-turn text."""
    is_complete: bool
    """It ended by itself; otherwise it was cut at a limit on tokens."""
    prompt_tokens: int
    """Of all requests."""
    completion_tokens: int
    """Of all candidates."""


class Searcher(Protocol):
    """Answers questions; many may be in work at the same time.

    A search that is cancelled cancels its requests.
    """

    def check(self, question: ChatQuestion) -> None:
        """Refuse what can't be answered, before anything is begun.

        Raises:
            RequestFailedError: no room for an answer, or control tokens where these are refused.
            ModelError: the model's chat template does not take this conversation.
        """
        ...

    async def answer(self, question: ChatQuestion) -> ChosenAnswer:
        """Search for an answer.

        Raises:
            RequestFailedError: this one question got no answer.
            ServerError: a model is gone, so that no question will get one.
        """
        ...

    async def watch(self) -> None:
        """Return never, as long as the models are there.

        Raises:
            ServerError: a server that was started here has ended.
        """
        ...
