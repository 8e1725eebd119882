"""An async client for any OpenAI-compatible server: completions and chat, with typed outcomes and usage."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai
from openai.types.chat import ChatCompletionMessageParam

from stairdata.llm.outcomes import (
    UNREACHABLE,
    MalformedAnswerError,
    Outcome,
    RequestFailedError,
    with_retries,
)
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import ServerError, quote

T = TypeVar("T")

DEAD_AFTER = 3  # failed requests in a row, each after all its retries, until the server counts as gone


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled text."""

    text: str
    finish: str
    """The server's finish_reason: stop, length, content_filter."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one request."""

    samples: list[Sample]
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class Tally:
    """What a client has sent so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class Client:
    """Sends requests to one server, a bounded number of them at a time.

    Args:
        endpoint: the recipe's words on the server.
        api_key: the key; never logged.
        base_url: where the server is.
        model: the server's name for the model.
        check: called after a connection failure; raises if the server is known to be dead.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        base_url: str,
        model: str,
        api_key: str,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.tally = Tally()
        self._retries = endpoint.retries
        self._window = asyncio.Semaphore(endpoint.concurrency)
        self._check = check or (lambda: None)
        self._failed_in_a_row = 0
        self._openai = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=endpoint.timeout)

    async def complete(self, prompt: str, *, n: int, max_tokens: int, seed: int, **sampling: Any) -> Generation:
        """Continue a rendered prompt.

        Args:
            prompt: the text as the model reads it, template and all.
            n: how many samples.
            max_tokens: length of each.
            seed: the request's seed.
            sampling: temperature, top_p, top_k, stop.

        Raises:
            RequestFailedError: no answer after all retries.
            ServerError: the server is gone.
        """
        extra = {
            "skip_special_tokens": False,  # the tags are special tokens
            "include_stop_str_in_output": True,
            "add_special_tokens": False,  # the template wrote the BOS already
            "top_k": sampling.pop("top_k", 0) or -1,
        }

        async def attempt() -> Generation:
            answer = await self._openai.completions.create(
                model=self.model,
                prompt=prompt,
                n=n,
                max_tokens=max_tokens,
                seed=seed,
                extra_body=extra,
                **sampling,
            )
            samples = [Sample(choice.text, choice.finish_reason or "") for choice in answer.choices or []]
            return _generation(samples, n, answer.usage)

        return await self._send(attempt)

    async def chat(
        self, messages: list[ChatCompletionMessageParam], *, max_tokens: int, seed: int, **options: Any
    ) -> Generation:
        """Ask for one chat answer; `options` go to the server as they are.

        Raises:
            RequestFailedError: no answer after all retries, or a refusal or filtered content.
            ServerError: the server is gone.
        """

        async def attempt() -> Generation:
            answer = await self._openai.chat.completions.create(
                model=self.model, messages=messages, max_completion_tokens=max_tokens, seed=seed, **options
            )
            samples = []
            for choice in answer.choices or []:
                if choice.message.refusal:
                    raise RequestFailedError([Outcome.REFUSAL], choice.message.refusal)
                if choice.finish_reason == "content_filter":
                    raise RequestFailedError([Outcome.CONTENT_FILTER], "the server withheld its answer")
                samples.append(Sample(choice.message.content or "", choice.finish_reason or ""))
            return _generation(samples, 1, answer.usage)

        return await self._send(attempt)

    async def models(self) -> list[str]:
        """List the server's models: the health check of a server that isn't ours.

        Raises:
            ServerError: it can't be reached, or refuses the key.
        """
        try:
            return [model.id async for model in self._openai.models.list()]
        except openai.OpenAIError as error:
            raise ServerError(
                f"the LLM server at {self.base_url} can't be used: {_words(error)}; "
                "check base_url, that the server runs, and the key in api_key_env"
            ) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()

    async def _send(self, attempt: Callable[[], Awaitable[Generation]]) -> Generation:
        async def counted() -> Generation:
            self.tally.requests += 1
            try:
                return await attempt()
            except openai.APIConnectionError:
                await asyncio.to_thread(self._check)
                raise

        async with self._window:
            try:
                generation = await with_retries(counted, self._retries)
            except RequestFailedError as error:
                self._note_failure(error)
                raise
        self._failed_in_a_row = 0
        self.tally.prompt_tokens += generation.prompt_tokens
        self.tally.completion_tokens += generation.completion_tokens
        self.tally.outcomes[Outcome.OK] += 1
        return generation

    def _note_failure(self, error: RequestFailedError) -> None:
        self.tally.outcomes[error.outcomes[-1]] += 1
        self._failed_in_a_row = self._failed_in_a_row + 1 if error.outcomes[-1] in UNREACHABLE else 0
        if self._failed_in_a_row >= DEAD_AFTER:
            raise ServerError(
                f"the LLM server at {self.base_url} does not answer any more ({quote(error.detail)}); "
                "finished work is kept: start the server and run the same command again"
            ) from error


def _generation(samples: list[Sample], wanted: int, usage: Any) -> Generation:
    if len(samples) != wanted:
        raise MalformedAnswerError(f"{len(samples)} samples instead of {wanted}")
    return Generation(samples, usage.prompt_tokens if usage else 0, (usage.completion_tokens or 0) if usage else 0)


def _words(error: openai.OpenAIError) -> str:
    return quote(str(error.__cause__ or error))
