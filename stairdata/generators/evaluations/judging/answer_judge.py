"""Judging answers as a recipe's section says: by rule, by a rubric, or by a guard model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from stairdata.generators.evaluations.judging.guards import GUARDS, Guard, judge_by_guard
from stairdata.generators.evaluations.judging.judgement import JudgedAnswer, Judgement, Question, ask_judge
from stairdata.generators.evaluations.judging.matching import MATCHED, judge_by_rule
from stairdata.generators.evaluations.judging.wording import HASH_DIGITS, RubricWords, policy_of, rubric_words
from stairdata.generators.evaluations.reply_journal import ModelReply, ReplyJournal
from stairdata.llm.actor import RequestUsage
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import unreadable
from stairdata.llm.wire.gathering import gather_all
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata.recipe.judges import EvaluationJudge
from stairdata_schemas import identity
from stairdata_schemas.errors import quote

T = TypeVar("T")

RULE = "rule"
"""What rows call the judge that needs no model."""
CALL = 1
"""Ordinal of judgements among the requests of a row, in their seeds."""
REASK_TEMPERATURE = 0.7
"""Asked again, a greedy judge would say the same."""


class JudgeWords:
    """Who judges what, and in which words: all that is known of a judge before it is asked.

    Args:
        section: the recipe's.
        model: what rows call the judge's model; None for kind rule.
        scores: of the benchmarks.

    Raises:
        RecipeError: a file of the section's can't be used.
    """

    def __init__(self, section: EvaluationJudge, model: str | None, scores: Sequence[BenchmarkScore]) -> None:
        self.section = section
        self.scores = scores
        self._model = model
        self.rubrics: dict[BenchmarkScore, RubricWords] = {}
        if section.kind == "rubric":
            self.rubrics = {score: rubric_words(section, score) for score in scores if score not in MATCHED}
        self.policy = policy_of(section.guard, section.policy)

    def __reduce__(self) -> tuple[Any, ...]:
        return JudgeWords, (self.section, self._model, self.scores)  # templates are read anew, they can't be copied

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of all words, for the fingerprint."""
        hashes: dict[str, str] = {score: words.sha256 for score, words in self.rubrics.items()}
        return hashes | ({"policy": _sha256(self.policy)} if self.policy is not None else {})

    def name(self, score: BenchmarkScore) -> str:
        """Return what rows call the judge of a score."""
        if score in MATCHED:
            return MATCHED[score][0]
        if score in self.rubrics:
            return f"{self._model}/{self.rubrics[score].name}"
        if self.section.kind == "guard":
            policy = f"@{_sha256(self.policy)[:HASH_DIGITS]}" if self.policy is not None else ""
            return f"{self._model}/{self.section.guard}{policy}"
        return RULE

    def asks(self, score: BenchmarkScore) -> int:
        """Return how many requests one judgement takes, where each is read the first time."""
        if score in MATCHED or self.section.kind == "rule":
            return 0
        return 2 if score in self.rubrics and self.rubrics[score].rubric.is_comparison else 1


class AnswerJudge:
    """Judges answers.

    Args:
        words: kind, sampling and words.
        pool: the judge's servers; None for kind rule.
        seed: the recipe's.
        replies: keeps what was said.
    """

    def __init__(self, words: JudgeWords, pool: EndpointPool | None, seed: int, replies: ReplyJournal) -> None:
        self.words = words
        self._pool = pool
        self._seed = seed
        self._replies = replies

    async def judge(self, owner: str, score: BenchmarkScore, answer: JudgedAnswer) -> tuple[Judgement, RequestUsage]:
        """Judge an answer.

        Args:
            owner: the key of the row, for seeds and for what was said before.
            score: how the benchmark is scored.
            answer: with what may be known of its prompt.

        Raises:
            JudgeFailedError: the judge said nothing readable in all its asks.
            RequestFailedError: a request to the judge failed.
        """
        if score in MATCHED:
            return MATCHED[score][1](answer), RequestUsage()
        if score in self.words.rubrics:
            return await self._by_rubric(owner, self.words.rubrics[score], answer)
        if self.words.section.guard is not None:
            return await self._by_guard(owner, GUARDS[self.words.section.guard], answer)
        return judge_by_rule(answer, score), RequestUsage()

    async def _by_rubric(self, owner: str, words: RubricWords, answer: JudgedAnswer) -> tuple[Judgement, RequestUsage]:
        rubric = words.rubric
        asking = [self._read(owner, question, rubric.read) for question in words.questions(answer)]
        read, usage = [], RequestUsage()
        for reading, used in await gather_all(asking):
            read.append(reading)
            usage = usage.plus(used)
        return rubric.judge(answer, read), usage

    async def _by_guard(self, owner: str, guard: Guard, answer: JudgedAnswer) -> tuple[Judgement, RequestUsage]:
        question = guard.ask(answer.prompt, answer.text, self.words.policy)
        verdict, usage = await self._read(owner, question, guard.read)
        return judge_by_guard(verdict), usage

    async def _read(self, owner: str, question: Question, read: Callable[[str], T | None]) -> tuple[T, RequestUsage]:
        """Ask until what is said can be read; what can't is kept until the last ask, so that a kill repeats none."""
        reasks = self.words.section.reasks
        usage, said, keys = RequestUsage(), "", []
        for ask in range(reasks + 1):
            seed = identity.request_seed(self._seed, f"{owner}/{question.name}", CALL, ask)
            keys.append(f"judge/{seed}")
            reply = await self._replies.once(keys[-1], partial(self._say, question, seed, ask))
            usage, said = usage.plus(reply.usage), str(reply.value)
            found = read(said)
            if found is not None:
                return found, usage
        for key in keys:
            self._replies.drop(key)  # the next run asks the judge again, and the model that answered not
        raise unreadable(f"the judge's {question.name} can't be read in {quote(said)}", reasks + 1, usage.outcomes)

    async def _say(self, question: Question, seed: int, ask: int) -> ModelReply:
        assert self._pool is not None
        section = self.words.section
        sampling: dict[str, Any] = {}
        if section.temperature is not None:
            sampling["temperature"] = max(section.temperature, REASK_TEMPERATURE) if ask else section.temperature
        generation = await ask_judge(self._pool, question, max_tokens=section.max_tokens, seed=seed, **sampling)
        return ModelReply(generation.samples[0].text, RequestUsage.of(generation))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
