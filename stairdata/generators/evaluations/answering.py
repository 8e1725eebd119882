"""Models that are tested: how each answers a prompt, by completions or by chat."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from stairdata.generators.evaluations.attacks.attack import AttackedPrompt
from stairdata.generators.evaluations.reply_journal import ModelReply
from stairdata.llm.actor import Actor, Continuation, RequestUsage
from stairdata.llm.client import Client
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.recipe import ResponsesSection


class SampledAnswer(NamedTuple):
    """One answer of a tested model."""

    text: str
    """From the start of the assistant's turn; where it was begun for the model, with that beginning."""
    is_cut: bool
    """It was cut at the token limit."""
    is_declined: bool = False
    """The server says that the model refused; the text is what it says about it."""


class AnsweringModel(Protocol):
    """A model that is tested."""

    async def answer(self, attacked: AttackedPrompt, n: int, max_tokens: int, seed: int) -> ModelReply:
        """Answer n times.

        Returns:
            A list of `SampledAnswer` as JSON: [[text, is_cut, is_declined], ...].

        Raises:
            RequestFailedError: no answer after all retries.
        """
        ...


class CompletionsModel:
    """A model whose prompts are rendered here, and which can go on from a beginning.

    Args:
        actor: renders and samples.
    """

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    async def answer(self, attacked: AttackedPrompt, n: int, max_tokens: int, seed: int) -> ModelReply:
        rendered = self._actor.render(attacked.prompt)
        if attacked.prefill:
            rendered = rendered.plus(attacked.prefill)
        pieces, usage = await self._actor.answers(rendered, n=n, max_tokens=max_tokens, seed=seed)
        return as_reply([_sampled(piece, attacked.prefill) for piece in pieces], usage)


class ChatModel:
    """A model whose server applies the chat template, as outside models' do.

    Args:
        client: the server.
        section: temperature and top_p; servers by chat alone take no top_k.
    """

    def __init__(self, client: Client, section: ResponsesSection) -> None:
        self._client = client
        self._sampling = {"temperature": section.temperature, "top_p": section.top_p}

    async def answer(self, attacked: AttackedPrompt, n: int, max_tokens: int, seed: int) -> ModelReply:
        assert not attacked.prefill  # refused before anything is asked
        asking = [self._sample(attacked.prompt, max_tokens, seed + index) for index in range(n)]
        results = await asyncio.gather(*asking, return_exceptions=True)
        samples, usage = [], RequestUsage()
        for result in results:
            if isinstance(result, BaseException):
                raise result
            samples.append(result[0])
            usage = usage.plus(result[1])
        return as_reply(samples, usage)

    async def _sample(self, prompt: str, max_tokens: int, seed: int) -> tuple[SampledAnswer, RequestUsage]:
        messages: Any = [{"role": "user", "content": prompt}]
        try:
            generation = await self._client.chat(messages, max_tokens=max_tokens, seed=seed, **self._sampling)
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


def _sampled(piece: Continuation, prefill: str) -> SampledAnswer:
    return SampledAnswer(prefill + piece.text, piece.is_cut)
