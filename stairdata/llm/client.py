"""An async client for any OpenAI-compatible server: completions and chat, with typed outcomes and usage."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
from openai.types import CompletionChoice
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat.chat_completion import Choice as ChatChoice

from stairdata.llm.outcomes import UNREACHABLE, MalformedAnswerError, Outcome, RequestFailedError, with_retries
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import ServerError, quote

DEAD_AFTER = 3  # failed requests in a row, each after all its retries, until the server counts as gone
PROBE_SECONDS = 10.0
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled text."""

    text: str
    finish: str
    """The server's finish_reason: stop, length."""

    def __post_init__(self) -> None:
        # half a character comes as a lone surrogate, which no file and no tokenizer can hold
        whole = self.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        object.__setattr__(self, "text", whole)


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one request."""

    samples: list[Sample]
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class Tally:
    """What a client has sent so far, retries included."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class Client:
    """Sends requests to one server, a bounded number of them at a time.

    Args:
        endpoint: the recipe's words on the server.
        base_url: where the server is.
        model: the server's name for the model.
        api_key: the key; it is cut out of whatever the server says.
        check: called after a lost connection; raises if the server is known to be dead.

    Raises:
        ServerError: the key can't be sent, or the URL is none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        base_url: str,
        model: str,
        api_key: str,
        check: Callable[[], None] | None = None,
    ) -> None:
        if not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ServerError(f"the key in the environment variable {endpoint.api_key_env} is empty or no key")
        self.model = model
        self.base_url = base_url
        self.tally = Tally()
        self._api_key = api_key
        self._retries = endpoint.retries
        self._window = asyncio.Semaphore(endpoint.concurrency)
        self._check = check or (lambda: None)
        self._failed_in_a_row = 0
        try:
            self._openai = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=api_key,
                max_retries=0,
                timeout=endpoint.timeout,
                # a proxy of the environment must not see what stays on this machine
                http_client=openai.DefaultAsyncHttpxClient(trust_env=urlsplit(base_url).hostname not in LOOPBACK),
            )
        except Exception as error:
            raise ServerError(f"base_url {quote(base_url)} is no URL: {error}") from error

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
            answer: Any = await self._openai.completions.create(
                model=self.model,
                prompt=prompt,
                n=n,
                max_tokens=max_tokens,
                seed=seed,
                extra_body=extra,
                **sampling,
            )
            return _generation(answer, n, _completion_sample)

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
            answer: Any = await self._openai.chat.completions.create(
                model=self.model, messages=messages, max_completion_tokens=max_tokens, seed=seed, **options
            )
            return _generation(answer, 1, _chat_sample)

        return await self._send(attempt)

    async def models(self) -> list[str]:
        """List the server's models: the health check of a server that isn't ours.

        Raises:
            ServerError: it can't be reached, or refuses the key.
        """
        try:
            return [model.id async for model in self._openai.models.list()]
        except Exception as error:
            raise ServerError(
                f"the LLM server at {self.base_url} can't be used: {quote(self._redact(error.__cause__ or error))}; "
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
                error.detail = self._redact(error.detail)
                await self._note_failure(error)
                raise
        self._failed_in_a_row = 0
        self.tally.prompt_tokens += generation.prompt_tokens
        self.tally.completion_tokens += generation.completion_tokens
        self.tally.outcomes[Outcome.OK] += 1
        return generation

    async def _note_failure(self, error: RequestFailedError) -> None:
        """Tell a request that failed from a server that is gone: a prompt must not be lost to the latter."""
        self.tally.outcomes[error.outcomes[-1]] += 1
        if error.outcomes[-1] not in UNREACHABLE:
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= DEAD_AFTER or not await self._is_there():
            raise ServerError(
                f"the LLM server at {self.base_url} does not answer any more ({quote(error.detail)}); "
                "finished work is kept: start the server and run the same command again"
            ) from error

    async def _is_there(self) -> bool:
        try:
            await self._openai.with_options(timeout=PROBE_SECONDS).models.list()
        except openai.APIConnectionError:
            return False
        except openai.OpenAIError:
            pass  # an answer, if not the one asked for
        return True

    def _redact(self, words: object) -> str:
        return str(words).replace(self._api_key, "<key>")


def _generation(answer: Any, wanted: int, read: Callable[[Any], Sample]) -> Generation:
    """Read an answer that may be anything: the openai package does not check what a server sends."""
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list):
        raise MalformedAnswerError("the answer has no choices")
    samples = [read(choice) for choice in choices]
    if len(samples) != wanted:
        raise MalformedAnswerError(f"{len(samples)} samples instead of {wanted}")
    usage = answer.usage
    return Generation(samples, usage.prompt_tokens if usage else 0, (usage.completion_tokens or 0) if usage else 0)


def _completion_sample(choice: Any) -> Sample:
    if not isinstance(choice, CompletionChoice) or not isinstance(getattr(choice, "text", None), str):
        raise MalformedAnswerError("a choice has no text")
    return _sample(choice.text, choice.finish_reason)


def _chat_sample(choice: Any) -> Sample:
    message = getattr(choice, "message", None) if isinstance(choice, ChatChoice) else None
    if message is None:
        raise MalformedAnswerError("a choice has no message")
    if message.refusal:
        raise RequestFailedError([Outcome.REFUSAL], message.refusal)
    return _sample(message.content or "", choice.finish_reason)


def _sample(text: str, finish: str | None) -> Sample:
    if finish == "content_filter":
        raise RequestFailedError([Outcome.CONTENT_FILTER], "the server withheld its answer")
    return Sample(text, finish or "")
