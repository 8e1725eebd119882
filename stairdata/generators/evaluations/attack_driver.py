"""Carrying out attacks: what one asks of the attacker, the tested model and the judge is answered here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from stairdata.generators.evaluations.answering import AnsweringModel, answers_in
from stairdata.generators.evaluations.attacks.attack import (
    AskAttacker,
    AskTarget,
    Attack,
    AttackOutcome,
    AttackRequest,
    AttackResult,
    AttackScore,
    AttackText,
    ScoreAnswer,
)
from stairdata.generators.evaluations.judging.judgement import Judgement
from stairdata.generators.evaluations.reply_journal import ModelReply, ReplyJournal
from stairdata.llm.actor import RequestUsage
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import RequestFailedError
from stairdata.llm.wire.gathering import gather_all
from stairdata.recipe.attacks import Attacker
from stairdata_schemas import identity

JudgeText = Callable[[str, str], Awaitable[tuple[Judgement, RequestUsage]]]
"""From a key and an answer to its judgement, against the prompt before the attack."""


class AttackDriver:
    """Carries out one attack on one prompt.

    An attack depends on nothing but what it is sent, so after a kill it is replayed from the journal and goes on where
    it stood.

    Args:
        owner: key of the response that the attack is for.
        seed: the recipe's.
        model: under attack.
        attacker: sampling of the model that writes attacks, and its servers; None where no attack needs it.
        judge: of the answers of the model under attack.
        replies: keeps what was said.
    """

    def __init__(
        self,
        owner: str,
        seed: int,
        model: AnsweringModel,
        attacker: tuple[Attacker, EndpointPool] | None,
        judge: JudgeText,
        replies: ReplyJournal,
    ) -> None:
        self._owner = owner
        self._seed = seed
        self._model = model
        self._attacker = attacker
        self._judge = judge
        self._replies = replies
        self.usage = RequestUsage()
        """Of all requests so far."""

    async def run(self, attack: Attack, prompt: str) -> AttackOutcome:
        """Carry the attack out, the requests of a batch at the same time.

        Raises:
            ServerError: a server is gone.
        """
        run = attack.start(prompt)
        try:
            batch = next(run)
            while True:
                batch = run.send(await gather_all([self._result(request) for request in batch]))
        except StopIteration as stop:
            outcome: AttackOutcome = stop.value
            return outcome

    async def _result(self, request: AttackRequest) -> AttackResult:
        """Answer a request; one that fails for good is told to the attack, which may go on without."""
        if isinstance(request, ScoreAnswer):
            return await self._score(request)
        try:
            reply = await self._replies.once(self._key(request), lambda: self._ask(request))
        except RequestFailedError:
            return AttackText(None)
        self.usage = self.usage.plus(reply.usage)
        said = answers_in(reply)[0].text if isinstance(request, AskTarget) else str(reply.value)
        return AttackText(said, _tokens(reply.usage))

    async def _ask(self, request: AskAttacker | AskTarget) -> ModelReply:
        seed = identity.request_seed(self._seed, self._key(request), request.call)
        if isinstance(request, AskTarget):
            return await self._model.reply(request.attacked, request.max_tokens, seed)
        assert self._attacker is not None  # a plan with such an attack has one
        section, pool = self._attacker
        messages: Any = [turn._asdict() for turn in request.turns]
        options: dict[str, Any] = {} if section.temperature is None else {"temperature": section.temperature}
        if section.top_p < 1:
            options["top_p"] = section.top_p
        generation = await pool.chat(messages, max_tokens=section.max_tokens, seed=seed, **options)
        return ModelReply(generation.samples[0].text, RequestUsage.of(generation))

    async def _score(self, request: ScoreAnswer) -> AttackScore:
        try:
            judgement, usage = await self._judge(f"{self._owner}/{request.call}", request.answer)
        except RequestFailedError:
            return AttackScore(None)
        self.usage = self.usage.plus(usage)
        return AttackScore(judgement.compliance, _tokens(usage))

    def _key(self, request: AskAttacker | AskTarget) -> str:
        ask = request.ask if isinstance(request, AskAttacker) else 0
        return f"attack/{self._owner}/{request.call}/{ask}"


def _tokens(usage: RequestUsage) -> int:
    return usage.prompt_tokens + usage.completion_tokens
