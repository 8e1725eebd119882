"""An async client for any OpenAI-compatible server: completions and chat, with typed outcomes and usage.

The invariant: each attempt is admitted by the budget, then waits for a place in the window, and gives both back however
it ends; what its answer took is charged, whether the answer can be read or not. A request ends in a `Generation`; in
RequestFailedError, which counts against its prompt; or in an error that ends the build and costs no prompt, which is
StoppedError if nothing more is to be sent, ServerError if the server is gone or refuses everybody.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import openai
from openai.types import Model as OpenAIModel
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from stairdata.llm.budget import Budget
from stairdata.llm.outcomes import (
    UNREACHABLE,
    AttemptFailedError,
    ControlTokensError,
    MalformedAnswerError,
    Outcome,
    RequestFailedError,
    RetryLimits,
    check_answer,
    with_retries,
)
from stairdata.llm.server_times import request_in_flight
from stairdata.llm.window import Window
from stairdata.llm.wire.bounded_http import LISTING, AnswerLimitError, BoundedHttpClient, body_limit, limit_for
from stairdata.llm.wire.json_answers import known_part, part
from stairdata.llm.wire.json_requests import JsonRequests
from stairdata.llm.wire.token_limit import TokenLimitName
from stairdata.llm.wrapping import split_thoughts
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import ServerError, quote
from stairdata_schemas.secrets.redaction import hold, redact
from stairdata_schemas.templating.control_tokens import find_quoted, neutralise

DEAD_AFTER = 3
"""Requests in a row that did not reach the server, each after all its retries, until it counts as gone even though it
answers a probe."""
PROBE_SECONDS = 10.0
"""Listing models takes no computing; a server that can't do it in that time does not answer anybody."""
START_SECONDS = 60.0
"""The same before the first request: the server may have to wake up."""
NAMES = 20
"""Models of a server that a message shows."""
TEMPLATE_TOKENS = 64
"""What a chat template may add to a message."""
CREDIBLE_TIMES = 10
CREDIBLE_TOKENS = 1000
"""Usage of so many times what a request can take is believed, and of so many tokens whatever it can take."""
MOST_TOKENS = 100_000_000
"""Of any one answer."""
ANSWER_LIMIT = "max_completion_tokens"
"""What the limit on an answer is called in a body, until one knows that its server has another name for it."""
THOUGHTS_FIELDS = ("reasoning_content", "reasoning")
"""Of a message: DeepSeek's and SGLang's, and that of OpenRouter, Ollama and vLLM."""
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class TokenLogprob(NamedTuple):
    """A sampled token and its log-probability."""

    token: str
    logprob: float
    others: dict[str, float]
    """The likeliest tokens in its place, where asked for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled text."""

    text: str
    finish: str
    """The server's finish_reason: stop, length."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of each token, where asked for."""
    thoughts: str = ""
    """What the model thought before the text, where the server tells."""

    def __post_init__(self) -> None:
        # half a character comes as a lone surrogate, which no file and no tokenizer can hold
        for name in ("text", "thoughts"):
            whole = getattr(self, name).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, name, whole)


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one request."""

    samples: list[Sample]
    prompt_tokens: int
    completion_tokens: int
    requests: int = 1
    """More than one where the server takes no n."""
    outcomes: tuple[Outcome, ...] = (Outcome.OK,)
    """How each attempt ended; the last one is ok, or length where a sample was cut."""
    reasoning_tokens: int = 0
    """Those of the completion tokens that were thoughts, as far as the server counts them."""

    @property
    def is_only_thoughts(self) -> bool:
        """Whether the one sample was cut before its answer began."""
        (sample,) = self.samples
        has_thought = bool(sample.thoughts) or self.reasoning_tokens > 0
        return has_thought and sample.finish == "length" and not sample.text.strip()


@dataclass(slots=True)
class Tally:
    """What a client has sent so far, retries included."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class ReadAnswer(Protocol):
    """What a server's answer was read as."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def outcomes(self) -> tuple[Outcome, ...]: ...


AnswerT = TypeVar("AnswerT", bound=ReadAnswer)


class RequestTokens(NamedTuple):
    """The tokens of one request: the most that it can take, or what its answer says it took."""

    prompt_tokens: int
    completion_tokens: int


class Client:
    """Sends requests to one server, a bounded number of them at a time.

    Args:
        endpoint: the recipe's words on the server.
        base_url: where the server is.
        model: the server's name for the model.
        api_key: the key; it is cut out of whatever the server says.
        check: called after a lost connection; raises if the server is known to be dead.
        budget: admits each request, and is charged for it.
        control_tokens: those of the model, where its tokenizer is at hand; asked for at the first chat.

    Raises:
        ServerError: the key can't be sent, or the URL is invalid.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        base_url: str,
        model: str,
        api_key: str,
        check: Callable[[], None] | None = None,
        budget: Budget | None = None,
        *,
        control_tokens: Callable[[], Collection[str]] = tuple,
    ) -> None:
        if not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ServerError(f"the key in the environment variable {endpoint.api_key_env} is empty or not a valid key")
        self.model = model
        self.base_url = base_url
        self.tally = Tally()
        self.budget = budget or Budget()
        fixed = endpoint.concurrency
        self.window = Window() if fixed == "auto" else Window(fixed, fixed)
        self.budget.on_stop.append(self.window.open)  # else those in line would wait for ever
        self._endpoint = endpoint
        self._control_tokens = control_tokens
        self._api_key = api_key
        hold(api_key)
        self._key_name = endpoint.api_key_env
        self.limits = RetryLimits(endpoint.retries, endpoint.retry_seconds)
        self._check = check or (lambda: None)
        self._in_flight = request_in_flight()
        self._failed_in_a_row = 0
        self._has_answered = False
        self._token_limit = TokenLimitName()
        self._takes_n: bool | None = None
        """Whether it gives several samples for one request; None until it was asked for some."""
        try:
            # a proxy of the environment must not see what stays on this machine
            http = BoundedHttpClient(trust_env=urlsplit(base_url).hostname not in LOOPBACK)
            self.openai = openai.AsyncOpenAI(
                base_url=base_url, api_key=api_key, max_retries=0, timeout=endpoint.timeout, http_client=http
            )
            self._json = JsonRequests(self.openai, http, endpoint.timeout)
        except Exception as error:
            raise ServerError(f"base_url {quote(redact(base_url))} is not a valid URL: {redact(str(error))}") from error

    async def complete(
        self,
        prompt: str | list[int],
        *,
        n: int,
        max_tokens: int,
        seed: int,
        prompt_tokens: int | None = None,
        **sampling: Any,
    ) -> Generation:
        """Continue a rendered prompt.

        A server that takes no n is asked n times, with the seeds that vLLM would give the samples of one request.

        Args:
            prompt: as the model reads it, template and all: a text, or token ids.
            n: how many samples.
            max_tokens: length of each.
            seed: the request's seed; sample i has seed + i.
            prompt_tokens: length of the prompt, if known; for the budget.
            sampling: temperature, top_p, top_k, stop, logprobs.

        Raises:
            RequestFailedError: no answer after all retries.
            StoppedError: the build sends nothing more.
            ServerError: the server is gone.
        """
        # a token has at least one byte
        longest = len(prompt.encode()) if isinstance(prompt, str) else len(prompt)
        most = RequestTokens(prompt_tokens if prompt_tokens is not None else longest, max_tokens)
        parts: list[Generation] = []
        if n == 1 or self._takes_n is not False:
            try:
                parts = [await self._complete(prompt, n, most, seed, sampling)]
            except RequestFailedError as error:
                is_invalid = error.outcomes[-1] is Outcome.INVALID_REQUEST
                is_about_n = is_invalid and re.search(r"\bn\b", error.detail) is not None
                if n == 1 or self._takes_n or not is_about_n:
                    raise
        got = sum(len(part.samples) for part in parts)  # a server may also ignore n, and give one
        if n > 1:
            self._takes_n = got == n
        singles = (self._complete(prompt, 1, most, seed + index, sampling) for index in range(got, n))
        return _joined([*parts, *await asyncio.gather(*singles)])

    async def _complete(
        self, prompt: str | list[int], n: int, most: RequestTokens, seed: int, sampling: dict[str, Any]
    ) -> Generation:
        max_tokens = most.completion_tokens
        body = completion_body(self.model, prompt, self._endpoint, n=n, max_tokens=max_tokens, seed=seed, **sampling)
        limit = limit_for(samples=n, max_tokens=max_tokens, logprobs=sampling.get("logprobs"))

        async def ask() -> Any:
            with body_limit(limit):
                return await self._json.post("/completions", body)

        most_of_all = most._replace(completion_tokens=n * most.completion_tokens)

        def read(answer: Any) -> Generation:
            may_ignore_n = self._takes_n is not True
            return _generation(answer, n, _completion_sample, most_of_all, may_ignore_n=may_ignore_n)

        generation, failures = await self.send(ask, read, most_of_all)
        return replace(generation, outcomes=(*failures, *generation.outcomes))

    async def chat(
        self,
        messages: list[ChatCompletionMessageParam],
        *,
        max_tokens: int,
        seed: int,
        as_is: bool = False,
        is_whole: bool = False,
        **options: Any,
    ) -> Generation:
        """Ask for one chat answer; `options` go to the server as they are.

        What the model thinks is kept apart from the text. Control tokens in the messages are neutralised: the server
        puts its template around them and would read them.

        Args:
            messages: of the chat.
            max_tokens: length of the answer.
            seed: the request's seed.
            as_is: send control tokens as they are, since what the server makes of them is what is tested; not where
                the recipe neutralises or refuses them.
            is_whole: leave thoughts in the text where it holds some, since they are part of what is tested.
            options: temperature, top_p and what else the server takes.

        Raises:
            RequestFailedError: no answer after all retries, a refusal or filtered content, or control tokens in a
                message and the recipe refuses these.
            StoppedError: the build sends nothing more.
            ServerError: the server is gone.
        """
        if not (as_is and self._endpoint.control_tokens == "plain"):
            messages = without_control_tokens(messages, self._endpoint, self._control_tokens())
        body = chat_body(self.model, messages, self._endpoint, max_tokens=max_tokens, seed=seed, **options)
        name = self._token_limit.name
        try:
            generation = await self._chat(body, name, is_whole=is_whole)
        except RequestFailedError as error:
            is_invalid = error.outcomes[-1] is Outcome.INVALID_REQUEST
            if not (is_invalid and self._token_limit.is_another(name, error.detail)):
                raise
            generation = await self._chat(body, self._token_limit.name, is_whole=is_whole)
        self._token_limit.settle()
        return generation

    async def _chat(self, body: dict[str, Any], limit_name: str, *, is_whole: bool) -> Generation:
        max_tokens = body[ANSWER_LIMIT]
        most = RequestTokens(most_read(body), max_tokens)
        logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
        sent = self.chat_request(body, limit_name)

        limit = limit_for(samples=1, max_tokens=max_tokens, logprobs=logprobs)

        async def ask() -> Any:
            with body_limit(limit):
                return await self._json.post("/chat/completions", sent)

        generation, failures = await self.send(ask, lambda answer: read_chat(answer, most, is_whole=is_whole), most)
        return replace(generation, outcomes=(*failures, *generation.outcomes))

    @staticmethod
    def chat_request(body: dict[str, Any], limit_name: str) -> dict[str, Any]:
        """Return the body of a chat as it is sent, with the limit under the name that the server takes."""
        return {limit_name if key == ANSWER_LIMIT else key: value for key, value in body.items()}

    async def models(self) -> list[str]:
        """List the server's models: the health check of a server that isn't ours.

        Raises:
            ServerError: it can't be reached, or refuses the key.
        """
        return [model.id for model in await self._listed()]

    async def _listed(self) -> list[OpenAIModel]:
        try:
            page = await self.openai.models.list(timeout=min(self._endpoint.timeout, START_SECONDS))
            check_answer(page)
            listed = [model async for model in page]
            if stranger := next((each for each in listed if not isinstance(each, OpenAIModel)), None):
                raise MalformedAnswerError(f"{quote(stranger)} is listed, which is no model")
            return listed
        except Exception as error:
            raise ServerError(
                f"the LLM server at {self.base_url} can't be used: {quote(self.redact(error.__cause__ or error))}; "
                f"check base_url, that the server runs, and its key in the environment variable {self._key_name}"
            ) from error

    async def check_model(self) -> str | None:
        """Check that the server is there and has the model.

        Returns:
            What the server made the model of, a folder or Hub id, where it says so, as vLLM does.

        Raises:
            ServerError: it can't be reached, refuses the key, or serves other models.
        """
        listed = await self._listed()
        served = [model.id for model in listed]
        if self.model not in served:
            names = ", ".join(map(quote, served[:NAMES])) or "nothing"
            names += f" and {len(served) - NAMES:,} more" if len(served) > NAMES else ""
            raise ServerError(f"the server at {self.base_url} does not serve {quote(self.model)}; it serves {names}")
        root = getattr(listed[served.index(self.model)], "root", None)
        return root if isinstance(root, str) else None

    async def tokens_of(self, text: str) -> dict[str, Any] | None:
        """Return what vLLM's /tokenize says of a text, `tokens` above all; None where it has no such route."""
        root = self.base_url.rstrip("/").removesuffix("/v1")
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            with body_limit(LISTING):
                said: Any = await self.openai.post(
                    f"{root}/tokenize", cast_to=object, body=body, options={"timeout": START_SECONDS}
                )
        except (openai.OpenAIError, ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) and isinstance(said.get("tokens"), list) else None

    def check_server(self) -> None:
        """Raise if the server is known to be dead, as one that was started here is once it has ended.

        Raises:
            ServerError: it is.
        """
        self._check()

    async def close(self) -> None:
        await self.openai.close()

    async def send(
        self, ask: Callable[[], Awaitable[Any]], read: Callable[[Any], AnswerT], most: RequestTokens
    ) -> tuple[AnswerT, list[Outcome]]:
        """Send a request of any kind until it is answered, as often as it may be.

        Args:
            ask: sends it once, through the openai package.
            read: makes something of what that returns, which may be anything; raises MalformedAnswerError.
            most: the tokens that the request can take.

        Returns:
            What was read, and how the attempts before it ended.

        Raises:
            RequestFailedError: no answer after all retries.
            StoppedError: the build sends nothing more.
            ServerError: the server is gone.
        """
        try:
            answer, failures = await self._retried(ask, read, most)
        except RequestFailedError as error:
            error.detail = self.redact(error.detail)
            await self._note_failure(error)
            raise
        self._failed_in_a_row = 0
        self._has_answered = True
        self.tally.prompt_tokens += answer.prompt_tokens
        self.tally.completion_tokens += answer.completion_tokens
        self.tally.outcomes[answer.outcomes[-1]] += 1
        return answer, failures

    async def _retried(
        self, ask: Callable[[], Awaitable[Any]], read: Callable[[Any], AnswerT], most: RequestTokens
    ) -> tuple[AnswerT, list[Outcome]]:
        sent_at = 0.0

        async def once() -> AnswerT:
            nonlocal sent_at
            # the budget first: a request that waits for it must not take up a place in the window meanwhile
            async with self._paid(most) as paid, self.window.slot() as slot:
                self.budget.check_running()  # it may have been stopped while this one was in line
                sent_at = slot.sent_at
                self.tally.requests += 1
                try:
                    with self._in_flight:
                        answer = await ask()
                except openai.APIConnectionError as error:
                    if isinstance(error.__cause__, AnswerLimitError):
                        paid.append(most)  # it answered, and more than it was asked for
                    # if a server that was started here has died, that is the error, and no retry will help
                    await asyncio.to_thread(self._check)
                    raise
                except (TypeError, AttributeError) as error:  # of a shape that the openai package stumbles over
                    raise MalformedAnswerError(f"the answer can't be read: {error}") from error
                paid.append(self._usage(answer, most))  # before it is read: what can't be read has to be paid, too
                found = read(answer)
                slot.work = found.completion_tokens + 1  # an answer without tokens was work, too
                return found

        def note(failure: AttemptFailedError) -> None:
            # a 403 to one prompt may be about what it asks; before any answer it is about the key
            if failure.is_final_for_all or (failure.is_forbidden and not self._has_answered):
                raise ServerError(
                    f"the LLM server at {self.base_url} rejects all requests: {quote(self.redact(failure.detail))}; "
                    f"finished work is kept: {failure.remedy} and run the same command again"
                ) from failure
            if failure.is_overload:
                self.window.overloaded(sent_at)
            # what the server asks of one request it would ask of the others, too; a longer wait ends the build
            if failure.retry_after is not None and failure.retry_after < self.limits.seconds:
                self.window.pause(failure.retry_after)

        return await with_retries(once, self.limits, note, self.budget.sleep)

    @asynccontextmanager
    async def _paid(self, most: RequestTokens) -> AsyncIterator[list[RequestTokens]]:
        """Set aside what an attempt can take, and charge what its answer says it took, read or not."""
        ticket = await self.budget.admit(self._endpoint.name, *most)
        paid: list[RequestTokens] = []
        try:
            yield paid
        finally:
            self.budget.settle(ticket, self._endpoint.name, *(paid[0] if paid else RequestTokens(0, 0)))

    def _usage(self, answer: Any, most: RequestTokens) -> RequestTokens:
        usage = part(answer, "usage")
        has_work = any(isinstance(part(answer, name), list) for name in ("choices", "data"))
        if usage is None and has_work and self.budget.counts_tokens:
            raise ServerError(
                f"the LLM server at {self.base_url} does not say how many tokens an answer took, so a limit on tokens "
                "or cost can't be enforced; finished work is kept: leave the limit out, or use another server"
            )
        return RequestTokens(0, 0) if usage is None else believed_usage(answer, most) or most

    async def _note_failure(self, error: RequestFailedError) -> None:
        """Find out whether the server is gone, which must not cost a prompt, or only this request has failed."""
        self.tally.outcomes[error.outcomes[-1]] += 1
        if error.outcomes[-1] not in UNREACHABLE:
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= DEAD_AFTER or not await self._is_there():
            raise ServerError(
                f"the LLM server at {self.base_url} no longer answers ({quote(error.detail)}); "
                "finished work is kept: start the server and run the same command again"
            ) from error

    async def _is_there(self) -> bool:
        try:
            await self.openai.with_options(timeout=PROBE_SECONDS).models.list()
        except openai.APIConnectionError:
            return False
        except (openai.OpenAIError, ValueError, RecursionError):
            pass  # an answer, if not the one asked for
        return True

    def redact(self, words: object) -> str:
        """Cut the key out of what a server says."""
        return redact(str(words).replace(self._api_key, "<key>"))


def without_control_tokens(
    messages: list[ChatCompletionMessageParam], endpoint: Endpoint, tokens: Collection[str] = ()
) -> list[ChatCompletionMessageParam]:
    """Return messages in which no text reads as the end or start of a turn.

    Args:
        messages: of one chat, with texts as contents.
        endpoint: of the model that reads them.
        tokens: control tokens of that model, where they are known.

    Raises:
        ControlTokensError: there are some, and the endpoint refuses these.
    """
    if endpoint.control_tokens == "refuse":
        found = [token for message in messages for token in find_quoted(str(message.get("content")), tokens)]
        if found:
            raise ControlTokensError(found)
    plain: Any = [message | {"content": neutralise(str(message.get("content")), tokens)} for message in messages]
    return list(plain)


def completion_body(
    model: str,
    prompt: str | list[int],
    endpoint: Endpoint,
    *,
    n: int,
    max_tokens: int,
    seed: int,
    **sampling: Any,
) -> dict[str, Any]:
    """Return the body of a request to continue a rendered prompt, live or in a batch."""
    ours = {
        "model": model,
        "prompt": prompt,
        "n": n,
        "max_tokens": max_tokens,
        "seed": seed,
        **sampling,
        "skip_special_tokens": False,  # the tags are special tokens
        "include_stop_str_in_output": True,
        "add_special_tokens": False,  # the template wrote the BOS already
        "top_k": sampling.get("top_k", 0) or -1,
    }
    return {**endpoint.extra_body, **ours}


def chat_body(
    model: str,
    messages: list[ChatCompletionMessageParam],
    endpoint: Endpoint,
    *,
    max_tokens: int,
    seed: int,
    **options: Any,
) -> dict[str, Any]:
    """Return the body of a chat request, live or in a batch."""
    effort = {"reasoning_effort": endpoint.reasoning_effort} if endpoint.reasoning_effort is not None else {}
    ours = {"model": model, "messages": messages, ANSWER_LIMIT: max_tokens, "seed": seed, **effort, **options}
    return {**endpoint.extra_body, **ours}


def most_taken(body: dict[str, Any]) -> RequestTokens:
    """Return the most tokens that a request can take, by what it asks for."""
    limit: int = body.get(ANSWER_LIMIT) or body["max_tokens"]
    return RequestTokens(most_read(body), limit * body.get("n", 1))


def most_read(body: dict[str, Any]) -> int:
    """Return how many prompt tokens a request can have at most: its texts' bytes."""
    if "prompt" in body:
        return len(body["prompt"].encode() if isinstance(body["prompt"], str) else body["prompt"])
    schema = len(json.dumps(body["response_format"])) if "response_format" in body else 0
    return schema + sum(len(str(message.get("content")).encode()) + TEMPLATE_TOKENS for message in body["messages"])


def read_chat(answer: Any, most: RequestTokens | None = None, *, is_whole: bool = False) -> Generation:
    """Read the one answer of a chat request, its thoughts apart.

    Args:
        answer: what the openai package made of it.
        most: the most tokens that the request can take, where known.
        is_whole: leave thoughts in the text where it holds some.

    Raises:
        MalformedAnswerError: it is no chat answer.
        RequestFailedError: the model refused, or a filter withheld it.
    """
    generation = _generation(answer, 1, _chat_sample, most)
    apart = thoughts_apart(generation)
    return replace(generation, outcomes=apart.outcomes) if is_whole else apart


def read_samples(answer: Any, n: int, most: RequestTokens | None = None) -> Generation:
    """Read the samples of one request as they are; one where the server has overlooked n.

    Args:
        answer: what the openai package made of it: of a completion, or of a chat that stands for one.
        n: how many were asked for.
        most: the most tokens that the request can take, where known.

    Raises:
        MalformedAnswerError: it is no such answer.
        RequestFailedError: the model refused, or a filter withheld it.
    """
    read = _chat_sample if isinstance(answer, ChatCompletion) else _completion_sample
    return _generation(answer, n, read, most, may_ignore_n=True)


def thoughts_apart(generation: Generation) -> Generation:
    """Return an answer of one sample without the thoughts in its text; nothing but thoughts is an outcome of its own.

    Thoughts that are a field of the answer are apart already.
    """
    (sample,) = generation.samples
    thoughts, text = split_thoughts(sample.text)
    both = "\n\n".join(filter(None, (sample.thoughts, thoughts)))
    apart = replace(generation, samples=[replace(sample, text=text, thoughts=both)])
    if apart.is_only_thoughts and apart.outcomes[-1] is Outcome.LENGTH:
        return replace(apart, outcomes=(*apart.outcomes[:-1], Outcome.ONLY_REASONING))
    return apart


def _joined(parts: list[Generation]) -> Generation:
    if len(parts) == 1:
        return parts[0]
    return Generation(
        [sample for part in parts for sample in part.samples],
        sum(part.prompt_tokens for part in parts),
        sum(part.completion_tokens for part in parts),
        len(parts),
        tuple(outcome for part in parts for outcome in part.outcomes),
        sum(part.reasoning_tokens for part in parts),
    )


def _generation(
    answer: Any,
    wanted: int,
    read: Callable[[Any], Sample],
    most: RequestTokens | None,
    *,
    may_ignore_n: bool = False,
) -> Generation:
    """Read an answer that may be anything: nobody checks what a server sends."""
    check_answer(answer)
    choices = part(answer, "choices")
    if not isinstance(choices, list):
        shown = f": {quote(answer)}" if isinstance(answer, str) and answer else ""
        raise MalformedAnswerError(f"the answer has no choices{shown}")
    try:
        samples = [read(choice) for choice in choices]
    except (AttributeError, TypeError) as error:  # of a shape that no server should send
        raise MalformedAnswerError(f"a choice can't be read: {error}") from error
    if len(samples) != wanted and not (may_ignore_n and len(samples) == 1):
        raise MalformedAnswerError(f"{len(samples)} samples instead of {wanted}")
    is_cut = any(sample.finish == "length" for sample in samples)
    outcome = Outcome.LENGTH if is_cut else Outcome.OK
    used, reasoned = RequestTokens(0, 0), 0
    if part(answer, "usage") is not None:
        believed = believed_usage(answer, most)
        used, outcome = (believed, outcome) if believed else (most or used, Outcome.UNBELIEVABLE_USAGE)
        reasoned = min(_reasoning_tokens(part(answer, "usage")), used.completion_tokens)
    return Generation(samples, *used, outcomes=(outcome,), reasoning_tokens=reasoned)


def believed_usage(answer: Any, most: RequestTokens | None) -> RequestTokens | None:
    """Return the tokens that an answer says it took; None where it can't have taken these.

    Args:
        answer: what the openai package made of it.
        most: the most tokens that the request can take, where known. A model's template may add to a prompt, and some
            servers overlook the limit on an answer, so that several times as many are believed. Thoughts are among the
            completion tokens; servers that count them beside these, such as xAI's, are known by their total.
    """
    usage = part(answer, "usage")
    said: list[Any] = [part(usage, name) for name in RequestTokens._fields]
    reasoned, total = _reasoning_tokens(usage), part(usage, "total_tokens")
    if reasoned and all(type(number) is int for number in said) and total == sum(said) + reasoned:
        said[1] += reasoned
    ceilings = [max(CREDIBLE_TOKENS, CREDIBLE_TIMES * number) for number in most] if most else [MOST_TOKENS] * 2
    if not all(type(number) is int and 0 <= number <= top for number, top in zip(said, ceilings, strict=True)):
        return None
    used = RequestTokens(*said)
    is_empty = not used.prompt_tokens or (not used.completion_tokens and _has_text(answer))
    return None if is_empty else used


def _reasoning_tokens(usage: Any) -> int:
    """Return how many tokens went into thoughts; 0 where that can't be read, since nothing is charged by it alone."""
    number = part(part(usage, "completion_tokens_details"), "reasoning_tokens")
    return number if type(number) is int and 0 < number <= MOST_TOKENS else 0


def _has_text(answer: Any) -> bool:
    choices = part(answer, "choices")
    texts = [
        part(choice, "text") or part(part(choice, "message"), "content")
        for choice in (choices if isinstance(choices, list) else [])
    ]
    return any(texts)


def _completion_sample(choice: Any) -> Sample:
    text = part(choice, "text")
    if not isinstance(text, str):
        raise MalformedAnswerError("a choice has no text")
    given = part(choice, "logprobs")
    if given is None:
        return _sample(text, part(choice, "finish_reason"), ())
    tokens, values = known_part(given, "tokens"), known_part(given, "token_logprobs")
    likely = known_part(given, "top_logprobs") or []
    logprobs = tuple(
        _logprob(token, value)._replace(others=_others(likely[index] if index < len(likely) else None))
        for index, (token, value) in enumerate(zip(tokens or [], values or [], strict=False))
    )
    return _sample(text, part(choice, "finish_reason"), logprobs)


def _others(likely: Any) -> dict[str, float]:
    return dict(_logprob(token, value)[:2] for token, value in (likely or {}).items())


def _chat_sample(choice: Any) -> Sample:
    message = part(choice, "message")
    content = None if message is None else known_part(message, "content")
    if message is None or not isinstance(content, str | None):
        raise MalformedAnswerError("a choice has no message")
    if refusal := part(message, "refusal"):
        raise RequestFailedError([Outcome.REFUSAL], refusal)
    given = part(choice, "logprobs")
    logprobs = tuple(
        _chat_logprob(token)._replace(
            others=dict(_chat_logprob(other)[:2] for other in known_part(token, "top_logprobs") or [])
        )
        for token in (known_part(given, "content") if given else None) or []
    )
    return _sample(content or "", part(choice, "finish_reason"), logprobs, _thoughts(message))


def _chat_logprob(token: Any) -> TokenLogprob:
    return _logprob(known_part(token, "token"), known_part(token, "logprob"))


def _thoughts(message: Any) -> str:
    """Return the thoughts that stand beside an answer; vLLM gives both fields with the same text."""
    fields = (part(message, name) for name in THOUGHTS_FIELDS)
    return next((field.strip() for field in fields if isinstance(field, str) and field.strip()), "")


def _logprob(token: Any, logprob: Any) -> TokenLogprob:
    # above zero by a hair where a server rounds; what is no number is not below 1 either
    if not isinstance(token, str) or not isinstance(logprob, int | float) or not logprob < 1:
        raise MalformedAnswerError("a token has no log-probability")
    return TokenLogprob(token, logprob, {})


def _sample(text: str, finish: str | None, logprobs: tuple[TokenLogprob, ...], thoughts: str = "") -> Sample:
    if finish == "content_filter":
        raise RequestFailedError([Outcome.CONTENT_FILTER], "the server withheld its answer")
    return Sample(text, finish or "", logprobs, thoughts)
