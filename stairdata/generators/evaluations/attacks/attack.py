"""What an attack is: a generator that asks for texts and scores, and ends with the attacked prompt. Free of I/O.

An attack yields batches of requests (`AskAttacker`, `AskTarget`, `ScoreAnswer`) and is sent their results in the same
order. Whoever drives it fetches them in any way, as with `stairdata.search.mcts`. Most attacks only rewrite the prompt:
they end without a request.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import NamedTuple

from stairdata_schemas.aliases import Row


class AttackedPrompt(NamedTuple):
    """What the target is sent."""

    prompt: str
    """The user's turn; plain text, whatever tokens it spells."""
    prefill: str = ""
    """Text of the assistant that the target goes on from: needs a server with completions."""
    forges_turn: bool = False
    """Its control tokens are the attack: a server by chat is sent them as they are."""


class ChatTurn(NamedTuple):
    """One turn of a conversation with the attacker."""

    role: str
    """system, user or assistant."""
    content: str


class AskAttacker(NamedTuple):
    """Ask the attacker to write; the result is an `AttackText`."""

    call: int
    """Number in the order of the attack's requests, the same whatever the order they are answered in."""
    turns: tuple[ChatTurn, ...]
    ask: int = 0
    """Raised when the answer before could not be read: another seed."""


class AskTarget(NamedTuple):
    """Ask the model under attack to answer; the result is an `AttackText`."""

    call: int
    attacked: AttackedPrompt
    max_tokens: int


class ScoreAnswer(NamedTuple):
    """Have an answer of the target judged, against the prompt before the attack; the result is an `AttackScore`."""

    call: int
    answer: str


class AttackText(NamedTuple):
    """What the attacker or the target wrote."""

    text: str | None
    """None: the request failed for good."""
    tokens: int = 0
    """Prompt and completion tokens that it took, re-tries included."""


class AttackScore(NamedTuple):
    """What the judge said."""

    score: float | None
    """From 0 (refused) to 1 (complied in full); None: could not be read after the re-asks."""
    tokens: int = 0


AttackRequest = AskAttacker | AskTarget | ScoreAnswer
AttackResult = AttackText | AttackScore


class AttackOutcome(NamedTuple):
    """What came of an attack on one prompt."""

    attacked: AttackedPrompt | None
    """None: the attacker wrote nothing that could be read."""
    details: Row
    """For the row's `details`: rounds, tokens, why it ended."""


AttackRun = Generator[list[AttackRequest], list[AttackResult], AttackOutcome]


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack of the recipe."""

    name: str
    """What rows call it."""
    start: Callable[[str], AttackRun]
    """Begin it on a prompt."""
    asks_attacker: bool = False
    """It needs `attacks.attacker`."""
    asks_target: bool = False
    """It needs the target, and a judge, before the prompt is evaluated."""
    needs_completions: bool = False
    """The answer is begun for the target, which no chat-only server can do."""
    details: Row = field(default_factory=dict)
    """Whose wording it is, for the manifest and the fingerprint."""

    @property
    def only_rewrites(self) -> bool:
        """Whether it ends without a request."""
        return not (self.asks_attacker or self.asks_target)
