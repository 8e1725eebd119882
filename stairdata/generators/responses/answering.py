"""Answering one prompt by a method: the search asks, the actor and the scorer answer. Neither reads nor writes files.

A search depends on nothing but what it is sent, so one that was interrupted is replayed from the replies that were kept
and goes on where it stood.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

from stairdata.generators.responses.journal import Replies, SearchReply, SearchUsage
from stairdata.llm.actor import Actor
from stairdata.llm.outcomes import RequestFailedError
from stairdata.llm.wire.gathering import gather_all
from stairdata.recipe import BEAM_KEYS, ResponsesSection
from stairdata.runs.units import UnitFailedError
from stairdata.search import answers, beam
from stairdata.search.answers import AnswerRequest, AnswerSearch, Ending, FoundAnswers, SampleEndings, ScoreTexts
from stairdata.search.mcts import SampleSteps, StepSample
from stairdata.search.scoring import ScoreItem, Scorer
from stairdata_schemas import identity
from stairdata_schemas.aliases import Json
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.grammar import split_steps
from stairdata_schemas.rendering import Conversation, RenderedPrompt

NOT_FINITE = "prm_not_finite"
"""Rule under which a prompt is refused whose PRM gives a score that is NaN or infinite."""


class AnswerCandidate(NamedTuple):
    """A candidate, as a row holds it."""

    text: str
    score: float | None
    is_complete: bool
    tokens: int
    step_scores: list[float] | None
    """None where nobody scores."""


class AskedText(NamedTuple):
    """What is answered."""

    prompt: str | Conversation
    prefill: str
    """Of the assistant's turn, from its start."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a prompt."""

    candidates: list[AnswerCandidate]
    """In the order sampled, at least one."""
    chosen_index: int
    counts: dict[str, int]
    """Answers that were cut, steps that were dropped."""
    usage: SearchUsage
    seconds: float

    @property
    def chosen(self) -> AnswerCandidate:
        return self.candidates[self.chosen_index]


class Answerer:
    """Answers prompts by one method, for as many callers at a time as there are.

    Args:
        actor: samples.
        section: method and its settings.
        scorer: the process reward model; None where nothing is scored.
    """

    def __init__(self, actor: Actor, section: ResponsesSection, scorer: Scorer | None) -> None:
        self._actor = actor
        self._section = section
        self._scorer = scorer

    async def answer(
        self,
        prompt: str | Conversation,
        seed: int,
        *,
        owner: str | None = None,
        replies: Replies | None = None,
        prefill: str = "",
    ) -> Answer:
        """Answer a prompt.

        Args:
            prompt: one user turn, or a conversation; what it spells is plain text.
            seed: of all requests of this answer, each of which has its own out of it.
            owner: what else tells these requests from those of others; default: the prompt's id.
            replies: replies that are known, and where new ones are kept.
            prefill: whole steps with which every answer begins, written by somebody else; scores are of those behind.

        Raises:
            RequestFailedError: no answer after all retries, or the prompt leaves no room for one.
            UnitFailedError: a score is not finite (`NOT_FINITE`).
            ServerError: the actor's server or the PRM's is gone.
            StoppedError: the budget is spent.
        """
        started = time.monotonic()
        seeds = seed, owner or conversation_id(prompt)
        asker = _Asker(self._actor, self._section, self._scorer, AskedText(prompt, prefill), seeds)
        try:
            found = await _drive(self._search(), asker, replies)
        except RequestFailedError as error:
            error.before = asker.used.outcomes()
            raise
        candidates = [
            AnswerCandidate(
                prefill + each.text,
                each.score,
                each.is_complete,
                self._actor.count_tokens(each.text),
                each.step_scores or None,
            )
            for each in found.candidates
        ]
        return Answer(candidates, found.chosen, _counts(found), asker.used, time.monotonic() - started)

    def _search(self) -> AnswerSearch:
        section = self._section
        if section.method == "beam":
            return beam.search(beam_config(section))
        is_best = section.method == "best_of_n"
        return answers.sample(section.n, is_scored=self._scorer is not None, keeps_best=is_best)


def conversation_id(prompt: str | Conversation) -> str:
    """Identify what is answered: a prompt by its id, a conversation by what was said and by whom."""
    return identity.prompt_id(prompt if isinstance(prompt, str) else json.dumps(prompt))


def beam_config(section: ResponsesSection) -> beam.BeamConfig:
    """Pass on what the search itself needs to know."""
    return beam.BeamConfig(**{name: getattr(section, name) for name in beam.BeamConfig.__dataclass_fields__})


def resolved_settings(section: ResponsesSection) -> Json:
    """Return the settings that decide answers, those of a beam search where the method is one."""
    used = BEAM_KEYS if section.method == "beam" else set()
    return counted_settings(section) | section.model_dump(mode="json", include=used)


async def _drive(search: AnswerSearch, asker: _Asker, replies: Replies | None) -> FoundAnswers:
    """Run a search to its end, the requests of a batch at the same time."""
    batch = next(search)
    while True:
        results = await gather_all([asker.reply(request, replies) for request in batch])
        try:
            batch = search.send([reply.result for reply in results])
        except StopIteration as stop:
            found: FoundAnswers = stop.value
            return found


class _Asker:
    """Gets what the search of one answer asks for."""

    def __init__(
        self, actor: Actor, section: ResponsesSection, scorer: Scorer | None, asked: AskedText, seeds: tuple[int, str]
    ) -> None:
        self._actor = actor
        self._section = section
        self._scorer = scorer
        self._asked = asked
        self._seed, self._owner = seeds
        rendered = actor.render(asked.prompt)
        self._rendered = rendered.plus(asked.prefill) if asked.prefill else rendered
        self.used = SearchUsage()
        """By all answered requests so far."""

    async def reply(self, request: AnswerRequest, replies: Replies | None) -> SearchReply:
        reply = replies.get(request.call) if replies is not None else None
        if reply is None:
            reply = await (self._score(request) if isinstance(request, ScoreTexts) else self._sample(request))
            if replies is not None:
                replies.keep(request.call, reply)
        self.used = self.used.plus(reply.usage)
        return reply

    async def _sample(self, request: SampleSteps | SampleEndings) -> SearchReply:
        before = self._rendered.plus(request.prefix)
        left = self._section.max_tokens - self._tokens_between(before)
        seed = identity.request_seed(self._seed, self._owner, request.call)
        if isinstance(request, SampleSteps):
            if left < 1:
                return SearchReply([StepSample("", 0, is_terminal=False, is_cut=True)] * request.n, SearchUsage())
            limit = min(left, self._section.step_tokens)
            pieces, usage = await self._actor.steps(before, n=request.n, max_tokens=limit, seed=seed)
            return SearchReply(
                [StepSample(each.text, None, each.is_terminal, each.is_cut) for each in pieces], SearchUsage(usage)
            )
        if left < 1:
            return SearchReply([Ending("", is_cut=True)] * request.n, SearchUsage())
        pieces, usage = await self._actor.answers(before, n=request.n, max_tokens=left, seed=seed)
        return SearchReply([Ending(each.text, each.is_cut) for each in pieces], SearchUsage(usage))

    def _tokens_between(self, before: RenderedPrompt) -> int:
        """Count the tokens of the answer so far."""
        count = self._actor.count_tokens
        return before.count(count) - self._rendered.count(count)

    async def _score(self, request: ScoreTexts) -> SearchReply:
        assert self._scorer is not None, "a search that scores needs a PRM, which the recipe checks"
        begun = len(split_steps(self._asked.prefill))
        items = [
            ScoreItem(self._asked.prompt, self._asked.prefill + text.text, text.is_complete, begun + text.known)
            for text in request.texts
        ]
        scores = await self._scorer.score(items)
        for item, values in zip(items, scores.values, strict=True):
            if not all(map(math.isfinite, values)):
                raw = {"text": self._asked.prompt, "answer": item.text, "step_scores": list(map(str, values))}
                raise UnitFailedError(NOT_FINITE, json.dumps(raw, ensure_ascii=False))
        return SearchReply(scores.values, SearchUsage(prm_calls=scores.calls, prm_tokens=scores.tokens))


def _counts(found: FoundAnswers) -> dict[str, int]:
    return {
        "cut_answers": sum(not each.is_complete for each in found.candidates),
        "cut_steps": found.cut_steps,
        "duplicate_steps": found.duplicates,
    }
