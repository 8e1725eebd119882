"""What attackers that write prompts share: numbered requests, a budget of tokens, and reading the prompt they wrote."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from stairdata.generators.evaluations.attacks.attack import (
    AskAttacker,
    AttackRequest,
    AttackResult,
    AttackText,
    ChatTurn,
)
from stairdata.llm.wrapping import without_thoughts
from stairdata_schemas.text.visible import is_blank

OPEN, CLOSE = "<prompt>", "</prompt>"
ASKED_FORM = f"Write the new prompt between {OPEN} and {CLOSE}, and nothing after it."


@dataclass(slots=True)
class AttackLedger:
    """Requests and tokens of an attack on one prompt."""

    limit: int | None = None
    """Tokens after which no request is made; None: no limit."""
    calls: int = 0
    tokens: int = 0
    unread: int = 0
    """Answers of the attacker that could not be read."""

    @property
    def is_spent(self) -> bool:
        return self.limit is not None and self.tokens >= self.limit

    def take(self) -> int:
        """Return the number of the next request."""
        self.calls += 1
        return self.calls - 1

    def count(self, results: Sequence[AttackResult]) -> None:
        """Count the tokens of results."""
        self.tokens += sum(result.tokens for result in results)


def written_prompt(text: str | None) -> str | None:
    """Return the prompt that an attacker wrote between its tags; None where there is none."""
    if text is None:
        return None
    before, closed, _ = without_thoughts(text).rpartition(CLOSE)
    _, opened, prompt = before.rpartition(OPEN)  # the last: an attacker may repeat what it was told about the tags
    prompt = prompt.strip()
    return prompt if opened and closed and not is_blank(prompt) else None


def ask_for_prompts(
    conversations: Sequence[tuple[ChatTurn, ...]], reasks: int, ledger: AttackLedger
) -> Generator[list[AttackRequest], list[AttackResult], list[AttackText | None]]:
    """Ask the attacker in several conversations side by side, again where its answer can't be read.

    Returns:
        For each conversation what it wrote, with a readable prompt; None: nothing readable, or the budget was spent.
    """
    found: list[AttackText | None] = [None] * len(conversations)
    calls = [ledger.take() for _ in conversations]
    for ask in range(reasks + 1):
        waiting = [place for place, text in enumerate(found) if text is None]
        if not waiting or ledger.is_spent:
            break
        results = yield [AskAttacker(calls[place], conversations[place], ask) for place in waiting]
        ledger.count(results)
        for place, result in zip(waiting, results, strict=True):
            assert isinstance(result, AttackText)
            if written_prompt(result.text) is None:
                ledger.unread += 1
            else:
                found[place] = result
    return found
