"""Judges: who says how helpful and how safe an answer is (design section 5)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from stairdata.generators.evaluations.judging.guards import GUARDS
from stairdata.generators.evaluations.judging.judgement import ask_judge
from stairdata.generators.evaluations.judging.wording import policy_of
from stairdata.llm.actor import Actor, RequestUsage
from stairdata.llm.client import Generation
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import Outcome, RequestFailedError, unreadable
from stairdata.llm.wire.gathering import gather_all
from stairdata.llm.wrapping import without_thoughts
from stairdata.recipe import JudgeSection
from stairdata.runs.templates import find_template
from stairdata.search.reward import Reward, rate, reference_rating, rule_safety
from stairdata_schemas.errors import quote
from stairdata_schemas.grammar import final_answer

TEMPLATE_VERSION = 1
TOP_LOGPROBS = 20  # the most that OpenAI's and vLLM's servers give by default


class Score(NamedTuple):
    """One rating: H or S, and the judge's words where they are kept."""

    score: float
    said: str | None


class RatingContext(Protocol):
    """What a judge needs of whoever it rates for."""

    def seed(self, ask: int) -> int: ...
    def known(self, aspect: str) -> tuple[Score, RequestUsage] | None: ...
    def keep(self, aspect: str, verdict: Score, usage: RequestUsage) -> None: ...


_SCORES = {"1", "2", "3", "4", "5"}
_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_MARKS = r"[*_`\"'(\[\])]*"
_WORD = "(one|two|three|four|five)"
_SCALE = r"(?:\(1\s*(?:-|\u2013|to)\s*5\))?"
# "4", "4/5", "**4**", "(4)", "4 out of 5"; not "45", "4.5", "4/10", "4 out of 10", "2-3"
_OF_FIVE = r"(?:\s*/\s*5|\s+out\s+of\s+(?:5|five))?"
_NUMBER = rf"{_MARKS}([1-5]){_MARKS}{_OF_FIVE}{_MARKS}(?!\d|\.\d|\s*/|\s+out\s+of\b|\s*[-\u2013]\s*\d)"
# possessive, since white space and marks that are given back are tried in every part of it
_BEFORE_SCALE = r"(?:[*_`\"'\[\])]|\((?!1\s*(?:-|\u2013|to)\s*5\)))*+"
_LABEL = rf"\b(?:score|rating)\b{_BEFORE_SCALE}\s*+{_SCALE}{_MARKS}+\s*+(?:[:=]|is)?{_MARKS}+\s*+"
_READINGS = [
    re.compile(_LABEL + _NUMBER, re.IGNORECASE),
    re.compile(_LABEL + rf"{_MARKS}{_WORD}\b", re.IGNORECASE),
    re.compile(rf"^[^\w\n]*+{_NUMBER}[^\w\n]*$", re.MULTILINE),
    re.compile(rf"^[^\w\n]*+{_WORD}(?:\s+out\s+of\s+five)?[^\w\n]*$", re.IGNORECASE | re.MULTILINE),
]


class Rating(NamedTuple):
    """What a judge said, and what it cost."""

    helpfulness: float
    safety: float
    usage: RequestUsage = RequestUsage()
    said: tuple[tuple[str, str], ...] = ()

    def reward(self, k1: float, k2: float) -> Reward:
        """Combine both scores into the search's reward."""
        return rate(self.helpfulness, self.safety, k1, k2)._replace(said=self.said)


def read_score(text: str) -> int | None:
    """Read a rating from 1 to 5 out of a judge's words; None where none can be read.

    Thoughts before the answer are not read: they weigh several ratings. What stands behind "Score" or "Rating" counts
    before a number alone on a line; of several the last counts, since the reasoning comes first.
    """
    answer = without_thoughts(text)
    for reading in _READINGS:
        found = reading.findall(answer)
        if found:
            return int(_WORDS.get(found[-1].lower(), found[-1]))
    return None


def read_expected_score(generation: Generation) -> float | None:
    """Return the expected score over 1 to 5 by the log-probabilities of the first token; None where there are none.

    Tokens that are no score are left out, and the others' probabilities scaled to 1.
    """
    logprobs = generation.samples[0].logprobs
    if not logprobs:
        return None
    likely = logprobs[0].others | {logprobs[0].token: logprobs[0].logprob}
    weights = [(int(token), math.exp(value)) for token, value in _digits(likely)]
    total = sum(weight for _, weight in weights)
    return sum(score * weight for score, weight in weights) / total if total else None


def _digits(likely: dict[str, float]) -> Iterator[tuple[str, float]]:
    for token, value in likely.items():
        if token.strip() in _SCORES:
            yield token.strip(), value


class Judge:
    """Rates answers as its section of the recipe says.

    Args:
        section: kind and sampling.
        client: the model that rates, or the guard; None for kind `reference`.
        actor: the actor, where it rates its own answers; beside a guard it rates their helpfulness. It is asked by
            completions, in its own template: a chat would let the server read control tokens in prompt and answer.
        helpfulness: the model that rates helpfulness beside a guard, where that is not the actor.
    """

    def __init__(
        self,
        section: JudgeSection,
        client: EndpointPool | None,
        actor: Actor | None = None,
        helpfulness: EndpointPool | None = None,
    ) -> None:
        self._section = section
        self._client = client
        self._actor = actor
        self._rater = helpfulness or client
        self._gives_logprobs = section.style == "direct"
        self._guard = GUARDS[section.guard] if section.guard is not None else None
        self._policy = policy_of(section.guard, section.policy, "trees.judge")

    async def rate(self, prompt: str, task: str, answer: str, reference: str | None, asks: RatingContext) -> Rating:
        """Rate a whole answer.

        Raises:
            JudgeFailedError: the judge said nothing readable in all its asks.
            RequestFailedError: a request to the judge failed.
        """
        if self._section.kind == "reference":
            penalise = self._section.penalise_over_refusal
            return Rating(*reference_rating(answer, task, reference, penalise_over_refusal=penalise))
        if self._section.kind == "rule":
            if task == "safety":
                return Rating(-1.0, rule_safety(answer, task))
            helpfulness, usage = await self._ask("helpfulness", prompt, answer, asks)
            return Rating(helpfulness.score, 1.0, usage, _words({"helpfulness": helpfulness}))
        ask_safety = self._ask_guard(prompt, answer, asks) if self._guard else self._ask("safety", prompt, answer, asks)
        asking = [self._ask("helpfulness", prompt, answer, asks), ask_safety]
        (helpfulness, first), (safety, second) = await gather_all(asking)
        said = _words({"helpfulness": helpfulness, "safety": safety})
        return Rating(helpfulness.score, safety.score, first.plus(second), said)

    async def _ask(self, aspect: str, prompt: str, answer: str, asks: RatingContext) -> tuple[Score, RequestUsage]:
        known = asks.known(aspect)
        if known is not None:
            return known
        template = find_template(__package__, f"judge_{aspect}_v{TEMPLATE_VERSION}")
        question = template.render(prompt=prompt, answer=final_answer(answer), style=self._section.style)
        usage, said = RequestUsage(), ""
        for ask in range(self._section.reasks + 1):
            generation = await self._say(question, asks.seed(ask))
            usage = usage.plus(RequestUsage.of(generation))
            said = generation.samples[0].text
            score = self._read(generation)
            if score is not None:
                verdict = Score((score - 3) / 2, said if self._section.keep_text else None)
                asks.keep(aspect, verdict, usage)
                return verdict, usage
        what = f"the judge's {aspect} can't be read in {quote(said)}"
        raise unreadable(what, self._section.reasks + 1, usage.outcomes)

    async def _ask_guard(self, prompt: str, answer: str, asks: RatingContext) -> tuple[Score, RequestUsage]:
        """Ask the guard model for S; it is asked again as any judge is."""
        known = asks.known("safety")
        if known is not None:
            return known
        assert self._guard is not None
        assert self._client is not None
        section = self._section
        question = self._guard.ask(prompt, final_answer(answer), self._policy)
        usage, said = RequestUsage(), ""
        for ask in range(section.reasks + 1):
            generation = await ask_judge(
                self._client,
                question,
                max_tokens=section.max_tokens,
                seed=asks.seed(ask),
                temperature=section.temperature,
                top_p=section.top_p,
            )
            usage, said = usage.plus(RequestUsage.of(generation)), generation.samples[0].text
            verdict = self._guard.read(said)
            if verdict is not None:
                score = Score(getattr(section.labels, verdict.label), said if section.keep_text else None)
                asks.keep("safety", score, usage)
                return score, usage
        raise unreadable(f"the guard can't be read in {quote(said)}", section.reasks + 1, usage.outcomes)

    async def _say(self, question: str, seed: int) -> Generation:
        section = self._section
        options: dict[str, Any] = {
            "seed": seed,
            "temperature": section.temperature,
            "top_p": section.top_p,
            "max_tokens": section.max_tokens if section.style == "reasoned" else 1,
        }
        if self._gives_logprobs:
            try:
                return await self._ask_model(question, options, with_logprobs=True)
            except RequestFailedError as error:
                if error.outcomes[-1] is not Outcome.INVALID_REQUEST:
                    raise
        generation = await self._ask_model(question, options, with_logprobs=False)
        self._gives_logprobs = False  # it answers this and not that
        return generation

    async def _ask_model(self, question: str, options: dict[str, Any], *, with_logprobs: bool) -> Generation:
        if self._actor is not None:
            return await self._actor.reply(question, **options, logprobs=TOP_LOGPROBS if with_logprobs else None)
        assert self._rater is not None
        message: Any = [{"role": "user", "content": question}]
        asked: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if with_logprobs else {}
        return await self._rater.chat(message, **options, **asked)

    def _read(self, generation: Generation) -> float | None:
        expected = read_expected_score(generation) if self._section.style == "direct" else None
        return expected if expected is not None else read_score(generation.samples[0].text)


def _words(verdicts: dict[str, Score]) -> tuple[tuple[str, str], ...]:
    return tuple((aspect, verdict.said) for aspect, verdict in verdicts.items() if verdict.said is not None)
