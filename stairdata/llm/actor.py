"""The actor: a served model that continues a half-written answer, step by step or to the end."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from stairdata.llm.client import Client, Generation, Sample, TokenLogprob, thoughts_apart
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import ControlTokensError, Outcome, RequestFailedError
from stairdata.recipe import ControlTokens, Sampling
from stairdata_schemas import rendering
from stairdata_schemas.errors import ServerError, quote
from stairdata_schemas.grammar import (
    CLOSING_TAGS,
    OUTPUT_CLOSE,
    OUTPUT_OPEN,
    STEP_CLOSE,
    STEP_OPEN,
    TAGS,
    closes_output,
)
from stairdata_schemas.rendering import Conversation, RenderedPrompt, turns_of
from stairdata_schemas.templating.control_tokens import find_control_tokens, neutralise


class Continuation(NamedTuple):
    """A sampled step or rest of an answer."""

    text: str
    """Without end-of-turn text."""
    is_terminal: bool
    """It ends the answer: by `<|/Output|>` or by the end-of-turn token."""
    is_cut: bool
    """It was cut at the token limit."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of its tokens, where asked for."""


class RequestUsage(NamedTuple):
    """What requests used up."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcomes: tuple[str, ...] = ()
    """How each attempt ended."""
    reasoning_tokens: int = 0
    """Those of the completion tokens that were thoughts."""

    def plus(self, other: RequestUsage) -> RequestUsage:
        return RequestUsage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.outcomes + other.outcomes,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    @classmethod
    def of_json(cls, written: list[Any]) -> RequestUsage:
        """Read what a journal holds; one of an earlier release ends before the thoughts."""
        requests, read, completed, outcomes, *reasoned = written
        return cls(requests, read, completed, tuple(outcomes), *reasoned)

    def counts(self) -> dict[str, int]:
        """Return the numbers by the names that they have in a manifest; thoughts only where there are some."""
        names = ["requests", "prompt_tokens", "completion_tokens"]
        return {name: getattr(self, name) for name in [*names, *["reasoning_tokens"] * (self.reasoning_tokens > 0)]}

    @classmethod
    def of(cls, generation: Generation) -> RequestUsage:
        return cls(
            generation.requests,
            generation.prompt_tokens,
            generation.completion_tokens,
            tuple(map(str, generation.outcomes)),
            generation.reasoning_tokens,
        )


class Actor:
    """Samples steps and answers from a served model.

    Args:
        client: the server.
        tokenizer: of the served model; renders prompts with its chat template and counts tokens.
        sampling: temperature, top_p and top_k of all its samples.
        context: tokens that prompt and answer may have together; a server refuses a request that asks for more.
        control_tokens: what becomes of control tokens in a prompt (`Endpoint.control_tokens`).
    """

    def __init__(
        self,
        client: Client | EndpointPool,
        tokenizer: rendering.Tokenizer,
        sampling: Sampling,
        context: int = 4096,
        control_tokens: ControlTokens = "plain",
    ) -> None:
        self.client = client
        self._context = context
        self._control_tokens = control_tokens
        self._has_given_logprobs = False
        self.tokenizer = tokenizer
        self.count_tokens = rendering.TokenCounter(tokenizer)
        self.end_of_turn = rendering.end_of_turn(tokenizer).text
        self._sampling = _options(sampling)

    def with_sampling(self, sampling: Sampling) -> Actor:
        """Return the same actor with other settings of its samples."""
        other = copy(self)
        other._sampling = _options(sampling)
        return other

    def render(self, prompt: str | Conversation) -> RenderedPrompt:
        """Render a prompt up to where the answer begins.

        Raises:
            RequestFailedError: it leaves no room for an answer, or holds control tokens and these are refused.
        """
        rendered = self._render(prompt)
        read = rendered.count(self.count_tokens)
        if read >= self._context:
            detail = f"the prompt has {read} tokens, and max_model_len of the actor is {self._context}"
            raise RequestFailedError([Outcome.INVALID_REQUEST], detail)
        return rendered

    def _render(self, prompt: str | Conversation) -> RenderedPrompt:
        turns = turns_of(prompt) if self._control_tokens != "plain" else ()
        found = [token for turn in turns for token in find_control_tokens(self.tokenizer, turn.content)]
        forging = [token for token in found if token not in TAGS]
        if forging and self._control_tokens == "refuse":
            raise ControlTokensError(forging)
        if found and self._control_tokens == "neutralise":
            prompt = tuple(turn._replace(content=neutralise(turn.content, found, keep=())) for turn in turns)
        return rendering.render_prompt(self.tokenizer, prompt)

    async def steps(
        self, rendered: RenderedPrompt, *, n: int, max_tokens: int, seed: int, with_logprobs: bool = False
    ) -> tuple[list[Continuation], RequestUsage]:
        """Sample n next steps: each up to and including the next closing tag, or to the end of the turn."""
        stop = [*CLOSING_TAGS, self.end_of_turn]
        return await self._sample(rendered, n, max_tokens, seed, stop, with_logprobs=with_logprobs)

    async def answers(
        self, rendered: RenderedPrompt, *, n: int, max_tokens: int, seed: int, with_logprobs: bool = False
    ) -> tuple[list[Continuation], RequestUsage]:
        """Sample n times to the end of the answer."""
        stop = [OUTPUT_CLOSE, self.end_of_turn]
        return await self._sample(rendered, n, max_tokens, seed, stop, with_logprobs=with_logprobs)

    async def reply(
        self, message: str, *, max_tokens: int, seed: int, logprobs: int | None = None, **sampling: float
    ) -> Generation:
        """Answer a message as in a chat, in the actor's own template, thoughts apart.

        Args:
            message: the user's turn; what it spells is plain text to the model.
            max_tokens: length of the answer.
            seed: the request's seed.
            logprobs: how many likeliest tokens to give for each token; None for none.
            sampling: temperature and top_p.

        Raises:
            RequestFailedError: no answer after all retries, or control tokens in the message and these are refused.
            StoppedError: the build sends nothing more.
            ServerError: the server is gone.
        """
        rendered = self._render(message)
        asked = {"logprobs": logprobs} if logprobs else {}
        read = rendered.count(self.count_tokens)
        options = {"stop": [self.end_of_turn], **sampling, **asked}
        generation = await self._complete(
            rendered, n=1, max_tokens=max_tokens, seed=seed, prompt_tokens=read, **options
        )
        sample = generation.samples[0]
        said = replace(sample, text=sample.text.partition(self.end_of_turn)[0])
        return thoughts_apart(replace(generation, samples=[said]))

    async def _sample(
        self, rendered: RenderedPrompt, n: int, max_tokens: int, seed: int, stop: list[str], *, with_logprobs: bool
    ) -> tuple[list[Continuation], RequestUsage]:
        read = rendered.count(self.count_tokens)
        room = min(max_tokens, self._context - read)
        if room < 1:
            return [Continuation("", is_terminal=False, is_cut=True)] * n, RequestUsage()
        sampling = self._sampling | {"stop": stop} | ({"logprobs": 1} if with_logprobs else {})
        try:
            generation = await self._complete(rendered, n=n, max_tokens=room, seed=seed, prompt_tokens=read, **sampling)
        except RequestFailedError as error:
            if with_logprobs and error.outcomes[-1] is Outcome.INVALID_REQUEST and not self._has_given_logprobs:
                await self._check_logprobs(rendered, read, error)
            raise
        self._has_given_logprobs |= with_logprobs
        return [self._continuation(sample, stop) for sample in generation.samples], RequestUsage.of(generation)

    async def _complete(self, rendered: RenderedPrompt, **options: Any) -> Generation:
        try:
            return await self.client.complete(rendered.request, **options)
        except RequestFailedError as error:
            if error.outcomes[-1] is Outcome.INVALID_REQUEST and isinstance(rendered.request, list):
                error.detail += (
                    " (the prompt holds control tokens, so token ids were sent; if the server takes none, set "
                    "control_tokens: neutralise)"
                )
            raise

    async def _check_logprobs(self, rendered: RenderedPrompt, read: int, error: RequestFailedError) -> None:
        """Find out whether a server refuses log-probabilities, which it would do for each prompt.

        Raises:
            ServerError: it does: it answers the same prompt without them.
        """
        if "logprob" not in error.detail.lower():
            try:
                await self._complete(rendered, n=1, max_tokens=1, seed=0, prompt_tokens=read)
            except RequestFailedError:
                return  # it is the prompt that it refuses
        raise ServerError(
            f"the actor's server refuses requests for log-probabilities ({quote(error.detail)}), which trees.score "
            "pucb needs for its priors; finished work is kept: use another server, or trees.score ucb"
        ) from error

    def _continuation(self, sample: Sample, stop: list[str]) -> Continuation:
        text, ended, _ = sample.text.partition(self.end_of_turn)
        if not ended and sample.finish == "stop":
            text = _restore_stop(text, stop)
        is_step = text.endswith(STEP_CLOSE) and not ended
        is_cut = sample.finish == "length" and not ended
        is_terminal = not (is_step or is_cut) or closes_output(text)
        return Continuation(text, is_terminal, is_cut, sample.logprobs)


def step_prior(logprobs: tuple[TokenLogprob, ...], mean: Literal["arithmetic", "geometric"]) -> float | None:
    """Return the mean probability of the tokens of a first step, as PUCB's p; None where there are none.

    The step ends with the token that completes a closing tag; without one it is all of the tokens.
    """
    text, values = "", []
    for token in logprobs:
        values.append(token.logprob)
        text += token.token
        if text.endswith(CLOSING_TAGS):
            break
    if not values:
        return None
    if mean == "geometric":
        return math.exp(sum(values) / len(values))
    return sum(map(math.exp, values)) / len(values)


def _options(sampling: Sampling) -> dict[str, float]:
    return {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}


def _restore_stop(text: str, stop: list[str]) -> str:
    """Put back the closing tag that a server cut off because it does not know `include_stop_str_in_output`."""
    if text.endswith(tuple(stop)):
        return text
    opened = max((STEP_OPEN, OUTPUT_OPEN), key=text.rfind)
    closing = STEP_CLOSE if opened == STEP_OPEN else OUTPUT_CLOSE
    start = text.rfind(opened)
    if start < 0 or closing in text[start:] or closing not in stop:
        return text
    return text + closing
