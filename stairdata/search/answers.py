"""What the methods of answering a prompt have in common: what they ask for, what comes of it, and the plain samples.

A method is a generator: it yields batches of requests (`SampleSteps`, `SampleEndings`, `ScoreTexts`), is sent their
results in the same order, and returns `FoundAnswers`. It depends on nothing but what it is sent, so it can be replayed
from recorded results.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, cast

from stairdata.search.choice import best_index
from stairdata.search.mcts import SampleSteps, StepSample


class SampleEndings(NamedTuple):
    """Ask for n ways in which an answer goes on after a prefix, to its end; the result is a sequence of `Ending`."""

    call: int
    prefix: str
    n: int


class Ending(NamedTuple):
    """The text after a prefix, without end-of-turn text."""

    text: str
    is_cut: bool
    """It was cut at the token limit."""


class TextToScore(NamedTuple):
    """An answer or the beginning of one, as `scoring.ScoreItem` without its prompt."""

    text: str
    is_complete: bool
    known: int = 0


class ScoreTexts(NamedTuple):
    """Ask for the scores of texts; the result is a list of lists, as `scoring.StepScores.values`."""

    call: int
    texts: tuple[TextToScore, ...]


Request = SampleSteps | SampleEndings | ScoreTexts
Result = Sequence[StepSample] | Sequence[Ending] | list[list[float]]


@dataclass(slots=True)
class Candidate:
    """An answer that was found."""

    text: str
    is_complete: bool
    """It ended by itself, not at a token limit."""
    step_scores: list[float] = field(default_factory=list)
    """The scores behind its steps; none where nobody scores."""

    @property
    def score(self) -> float | None:
        """The score of the whole."""
        return self.step_scores[-1] if self.step_scores else None


@dataclass(slots=True)
class FoundAnswers:
    """What a method came to."""

    candidates: list[Candidate] = field(default_factory=list)
    """In the order sampled."""
    chosen: int = 0
    duplicates: int = 0
    """Steps and answers that a search dropped because it had them already."""
    cut_steps: int = 0
    """Steps that a search dropped because they were cut at the token limit."""


Search = Generator[list[Request], list[Result], FoundAnswers]
Scoring = Generator[list[Request], list[Result], None]


def sample(n: int, *, is_scored: bool, keeps_best: bool) -> Search:
    """Sample n whole answers in one request.

    Args:
        n: answers; equal ones stay, so that the first k are what a request for k would have given.
        is_scored: score them.
        keeps_best: choose the best one; else the first.
    """
    calls = count()
    endings = cast("Sequence[Ending]", (yield [SampleEndings(next(calls), "", n)])[0])
    found = FoundAnswers([Candidate(ending.text, not ending.is_cut) for ending in endings])
    if is_scored:
        yield from score(found.candidates, calls)
    if keeps_best:
        found.chosen = choose(found.candidates)
    return found


def choose(candidates: Sequence[Candidate]) -> int:
    """Return the index of the best scored candidate."""
    return best_index([each.is_complete for each in candidates], [each.step_scores[-1] for each in candidates])


def score(candidates: Sequence[Candidate], calls: Iterator[int], known: Sequence[int] | None = None) -> Scoring:
    """Score candidates in one batch, equal ones once.

    Args:
        candidates: whose scores are completed.
        calls: numbers requests.
        known: how many of the scores that each has stay as they are.
    """
    texts = [
        TextToScore(each.text, each.is_complete, kept)
        for each, kept in zip(candidates, known or [0] * len(candidates), strict=True)
    ]
    distinct = tuple(dict.fromkeys(texts))
    values = cast("list[list[float]]", (yield [ScoreTexts(next(calls), distinct)])[0])
    scores_of = dict(zip(distinct, values, strict=True))
    for candidate, text in zip(candidates, texts, strict=True):
        candidate.step_scores = [*candidate.step_scores[: text.known], *scores_of[text]]
