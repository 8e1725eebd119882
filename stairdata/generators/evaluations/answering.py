"""Models that are tested: how each answers a prompt, by completions or by chat."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stairdata.generators.evaluations.attacks.attack import AttackedPrompt
from stairdata.generators.evaluations.reply_journal import ModelReply
from stairdata.generators.responses.answering import Answerer
from stairdata.generators.responses.journal import SearchJournal
from stairdata.llm.actor import Actor, RequestUsage
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.llm.wire.gathering import gather_all
from stairdata.recipe import ResponsesSection
from stairdata.search.scoring import Scorer
from stairdata_schemas import identity


class SampledAnswer(NamedTuple):
    """One answer of a tested model."""

    text: str
    """From the start of the assistant's turn; where it was begun for the model, with that beginning."""
    is_cut: bool
    """It was cut at the token limit."""
    is_declined: bool = False
    """The server says that the model refused; the text is what it says about it."""
    prm_score: float | None = None
    """Of the process reward model, where there is one."""


class AnsweringModel(Protocol):
    """A model that is tested."""

    async def answer(self, attacked: AttackedPrompt, response_id: str) -> ModelReply:
        """Answer by the recipe's method: n samples, or the one answer that a search chose.

        Args:
            attacked: the prompt, and how the answer begins.
            response_id: names the journal of a search.

        Returns:
            A list of `SampledAnswer` as JSON.

        Raises:
            RequestFailedError: no answer after all retries.
            UnitFailedError: a score of the PRM that is none.
        """
        ...

    async def reply(self, attacked: AttackedPrompt, max_tokens: int, seed: int) -> ModelReply:
        """Answer once, whatever the method: for an attack that looks at answers.

        Raises:
            RequestFailedError: no answer after all retries.
        """
        ...


class CompletionsModel:
    """A model whose prompts are rendered here, and which can go on from a beginning.

    Args:
        actor: renders and samples.
        section: method and its settings.
        scorer: the process reward model; None where nothing is scored.
        seed: the recipe's. An answer to a prompt without an attack is the one of `build responses`.
        running: folder of the journals of searches.
    """

    def __init__(
        self, actor: Actor, section: ResponsesSection, scorer: Scorer | None, seed: int, running: Path
    ) -> None:
        self._actor = actor
        self._section = section
        self._answerer = Answerer(actor, section, scorer)
        self._is_search = scorer is not None
        self._seed = seed
        self._running = running

    async def answer(self, attacked: AttackedPrompt, response_id: str) -> ModelReply:
        path = self._running / f"{response_id}.jsonl"
        with closing(SearchJournal(path)) if self._is_search else nullcontext() as journal:
            found = await self._answerer.answer(attacked.prompt, self._seed, replies=journal, prefill=attacked.prefill)
        chosen = found.candidates if self._section.method == "sample" else [found.chosen]
        samples = [SampledAnswer(each.text, not each.is_complete, prm_score=each.score) for each in chosen]
        return as_reply(samples, found.usage.actor)

    async def reply(self, attacked: AttackedPrompt, max_tokens: int, seed: int) -> ModelReply:
        rendered = self._actor.render(attacked.prompt)
        if attacked.prefill:
            rendered = rendered.plus(attacked.prefill)
        (piece,), usage = await self._actor.answers(rendered, n=1, max_tokens=max_tokens, seed=seed)
        return as_reply([SampledAnswer(attacked.prefill + piece.text, piece.is_cut)], usage)


class ChatModel:
    """A model whose server applies the chat template, as outside models' do.

    Args:
        pool: the servers.
        section: n, max_tokens, temperature and top_p; servers by chat alone take no top_k.
        seed: the recipe's.
    """

    def __init__(self, pool: EndpointPool, section: ResponsesSection, seed: int) -> None:
        self._pool = pool
        self._section = section
        self._seed = seed

    async def answer(self, attacked: AttackedPrompt, response_id: str) -> ModelReply:
        seed = identity.request_seed(self._seed, response_id, 0)
        asking = [self._sample(attacked, self._section.max_tokens, seed + index) for index in range(self._section.n)]
        samples, usage = [], RequestUsage()
        for sample, used in await gather_all(asking):
            samples.append(sample)
            usage = usage.plus(used)
        return as_reply(samples, usage)

    async def reply(self, attacked: AttackedPrompt, max_tokens: int, seed: int) -> ModelReply:
        sample, usage = await self._sample(attacked, max_tokens, seed)
        return as_reply([sample], usage)

    async def _sample(self, attacked: AttackedPrompt, max_tokens: int, seed: int) -> tuple[SampledAnswer, RequestUsage]:
        messages: Any = [{"role": "user", "content": attacked.prompt}]
        sampling = {"temperature": self._section.temperature, "top_p": self._section.top_p}
        try:
            generation = await self._pool.chat(
                messages, max_tokens=max_tokens, seed=seed, as_is=attacked.forges_turn, is_whole=True, **sampling
            )
        except RequestFailedError as error:
            if error.outcomes[-1] is not Outcome.REFUSAL:
                raise
            declined = SampledAnswer(error.detail, is_cut=False, is_declined=True)
            return declined, RequestUsage(1, 0, 0, tuple(map(str, error.outcomes)))
        sample = generation.samples[0]
        return SampledAnswer(sample.text, sample.finish == "length"), RequestUsage.of(generation)


def as_reply(samples: Sequence[SampledAnswer], usage: RequestUsage) -> ModelReply:
    """Return answers as they are journaled."""
    return ModelReply([list(sample) for sample in samples], usage)


def answers_in(reply: ModelReply) -> list[SampledAnswer]:
    """Return the answers of a journaled reply."""
    return [SampledAnswer(*sample) for sample in reply.value]
