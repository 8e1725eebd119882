"""Making one row: attack, answer, judgement; each is asked for once, whoever waits for it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from stairdata.generators.evaluations.answering import AnsweringModel, SampledAnswer, answers_in
from stairdata.generators.evaluations.attack_driver import AttackDriver
from stairdata.generators.evaluations.attacks.attack import Attack, AttackedPrompt
from stairdata.generators.evaluations.judging.answer_judge import AnswerJudge
from stairdata.generators.evaluations.judging.judgement import Judgement
from stairdata.generators.evaluations.reply_journal import ReplyJournal
from stairdata.generators.evaluations.rows import (
    NO_ATTACK,
    EvaluationUnit,
    counts_of,
    evaluation_row,
    final_text,
    unjudged,
)
from stairdata.llm.actor import RequestUsage
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.recipe import Recipe
from stairdata.recipe.attacks import Attacker
from stairdata.runs.units import Unit, UnitFailedError, UnitResult
from stairdata_schemas.aliases import Row


class _Answered(NamedTuple):
    """What the tested model was asked, and what it answered."""

    samples: list[SampledAnswer]
    attacked: AttackedPrompt
    attack_details: Row
    usage: RequestUsage


class Evaluator:
    """Makes rows of one tested model, or of answers that are given.

    Args:
        recipe: sections `responses` and `evaluations`.
        attacks: by name.
        judge: of all answers.
        replies: keeps what was said.
        model: that is tested; None where the answers are given.
        attacker: sampling and server of the model that writes attacks.
    """

    def __init__(
        self,
        recipe: Recipe,
        attacks: dict[str, Attack],
        judge: AnswerJudge,
        replies: ReplyJournal,
        model: AnsweringModel | None = None,
        attacker: tuple[Attacker, EndpointPool] | None = None,
    ) -> None:
        self._recipe = recipe
        self._attacks = attacks
        self._judge = judge
        self._replies = replies
        self._model = model
        self._attacker = attacker

    async def work(self, unit: Unit) -> UnitResult:
        """Make a row.

        Raises:
            UnitFailedError: an attack that came to nothing.
            RequestFailedError: no answer, or a judgement that can't be read.
        """
        row = EvaluationUnit(**unit.payload)
        answered = await self._answer(row)
        answer = answered.samples[row.sample]
        usage = answered.usage if row.is_first else RequestUsage()
        judgement = unjudged(row, answer)
        if judgement is None:
            judgement, took = await self._judge_text(unit.key, row, answer)
            usage = usage.plus(took)
        attacked = None if row.attack == NO_ATTACK else answered.attacked.prompt
        made = evaluation_row(row, answer, judgement, attacked, answered.attack_details)
        return UnitResult(made, counts_of(judgement), dict(Counter(usage.outcomes)), usage=usage.counts())

    async def _judge_text(
        self, owner: str, row: EvaluationUnit, answer: SampledAnswer
    ) -> tuple[Judgement, RequestUsage]:
        text = answer.text if row.reads == "whole" else final_text(answer.text)
        return await self._judge.judge(owner, row.score, row.judged(text))

    async def _answer(self, row: EvaluationUnit) -> _Answered:
        if row.answer is not None:
            given = [SampledAnswer(*row.answer)]  # type: ignore[arg-type]  # as JSON holds it
            return _Answered(given * (row.sample + 1), AttackedPrompt(row.prompt), {}, RequestUsage())
        assert self._model is not None
        attacked, details, attack_usage = await self._attack(row, self._model)
        model, response_id = self._model, row.response_id
        reply = await self._replies.once(f"answer/{response_id}", lambda: model.answer(attacked, response_id))
        return _Answered(answers_in(reply), attacked, details, attack_usage.plus(reply.usage))

    async def _attack(self, row: EvaluationUnit, model: AnsweringModel) -> tuple[AttackedPrompt, Row, RequestUsage]:
        async def judge(owner: str, text: str) -> tuple[Judgement, RequestUsage]:
            shown = final_text(text)
            if not shown.strip():
                return Judgement(), RequestUsage()
            return await self._judge.judge(owner, row.score, row.judged(shown))

        driver = AttackDriver(row.response_id, self._recipe.seed, model, self._attacker, judge, self._replies)
        outcome = await driver.run(self._attacks[row.attack], row.prompt)
        if outcome.attacked is None:
            raise UnitFailedError("attack_failed", row.prompt)
        details = dict(outcome.details) | ({"prefill": outcome.attacked.prefill} if outcome.attacked.prefill else {})
        return outcome.attacked, details, driver.usage
