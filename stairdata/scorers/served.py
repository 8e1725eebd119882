"""A process reward model on a vLLM server: `POST /classify`, with token ids.

The score of a sequence is the output of the model's one label at its last token, which vLLM calls `probs[0]`
(`vllm/entrypoints/pooling/classify`); without `use_activation: false` it would be the sigmoid of that. Each beginning
of an answer is a sequence, and the server's prefix cache finds again what several have in common.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import openai
from openai import BaseModel

from stairdata.llm.client import Client, RequestTokens, believed_usage
from stairdata.llm.endpoint_pool import EndpointPool
from stairdata.llm.outcomes import MalformedAnswerError, Outcome, RequestFailedError, check_answer
from stairdata.llm.wire.bounded_http import body_limit, limit_for
from stairdata.scorers.joining import BatchJoiner
from stairdata.scorers.reading import unscored_ids
from stairdata.search.scoring import ScoreItem, Scorer, StepScores
from stairdata_schemas.errors import ModelError, quote
from stairdata_schemas.grammar import Step, render
from stairdata_schemas.rendering import Tokenizer, render_prompt

BATCH = 32
"""Sequences of a request at most."""
REQUESTS = 4
"""Requests in flight at most: together as many sequences as vLLM works on at a time, and one of them is late."""
TOKENS_OF_A_SCORE = 4
"""What a score takes up in an answer, in tokens of a text: `{"index":0,"label":"LABEL_0","probs":[...],...}`."""
NOT_FINITE = "not JSON compliant"
"""What vLLM says (with status 400) about a request one of whose scores is NaN or infinite."""
_OF_ONE_SEQUENCE = {Outcome.INVALID_REQUEST, Outcome.MALFORMED, Outcome.SERVER_ERROR}
"""Ends of a request that one of its sequences may have brought upon the others."""
_PROBE = render(
    [Step("Problem Analysis:", "The question isn't harmless:  naïve 👩🏽‍🚀 12345")],
    "東京 is\n\tthere; I'm sorry, I can't help.",
)
"""Tokenizers of two families cut it differently, and so do those of one with other tags."""
_log = logging.getLogger("stairdata")


class ClassAnswer(BaseModel):
    """An answer of /classify; it may hold anything, since the openai package does not check it."""

    data: Any = None
    usage: openai.types.CompletionUsage | None = None


class Scores(NamedTuple):
    """The scores of one request's sequences, in their order."""

    values: list[float]
    prompt_tokens: int
    completion_tokens: int
    outcomes: tuple[Outcome, ...]


class PrmClient:
    """Asks a server for scores.

    Args:
        client: of the server.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._root = client.base_url.rstrip("/").removesuffix("/v1")

    async def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Score sequences of token ids in one request.

        Returns:
            A number for each; NaN and infinite ones are passed on.

        Raises:
            RequestFailedError: no answer after all retries.
            StoppedError: the build sends nothing more.
            ServerError: the server is gone.
            ModelError: the model has several labels.
        """
        body = {"model": self.client.model, "input": sequences, "use_activation": False}
        most = RequestTokens(sum(map(len, sequences)), 0)

        async def ask() -> Any:
            with body_limit(limit_for(samples=len(sequences), max_tokens=TOKENS_OF_A_SCORE)):
                return await self.client.openai.post(f"{self._root}/classify", cast_to=ClassAnswer, body=body)

        found, _ = await self.client.send(ask, lambda answer: self._read(answer, len(sequences), most), most)
        return found.values

    async def check(self, tokenizer: Tokenizer) -> int | None:
        """Check that the server scores, and that it cuts text into tokens as our tokenizer does.

        Returns:
            How many tokens the model reads at most, where the server says so.

        Raises:
            ServerError: it does not answer.
            ModelError: it does not answer /classify, or its model has several labels or another tokenizer.
        """
        probe = render_prompt(tokenizer, "Why?").plus(_PROBE)
        context = await self._check_tokenizer(probe.text, probe.ids)
        try:
            await self.scores([probe.ids])
        except RequestFailedError as error:
            raise ModelError(
                f"the server at {self.client.base_url} does not score by /classify: {quote(error.detail)}; "
                "give a server of a process reward model, such as vLLM with --runner pooling"
            ) from error
        return context

    async def _check_tokenizer(self, text: str, ids: list[int]) -> int | None:
        said = await self.client.tokens_of(text)
        if said is None:
            _log.warning(
                "note: the server at %s does not say how it cuts text into tokens (/tokenize), so that the tokenizer "
                "of the process reward model can't be checked",
                self.client.base_url,
            )
            return None
        tokens = said["tokens"]
        if tokens != ids:
            raise ModelError(
                f"the process reward model {quote(self.client.model)} at {self.client.base_url} has another tokenizer "
                f"than the one that responses.prm names: it cuts {quote(text)} into {len(tokens)} tokens, "
                f"{quote(tokens)}, and ours into {len(ids)}, {quote(ids)}; give the tokenizer of the served model"
            )
        context = said.get("max_model_len")
        return context if type(context) is int and context > 0 else None

    def _read(self, answer: Any, wanted: int, most: RequestTokens) -> Scores:
        check_answer(answer)
        data = getattr(answer, "data", None)
        if not isinstance(data, list) or len(data) != wanted:
            shown = f"{len(data)} scores" if isinstance(data, list) else f"no scores: {quote(answer)}"
            raise MalformedAnswerError(f"{shown}, and {wanted} were asked for")
        values = [self._score(entry, place) for place, entry in enumerate(data)]
        usage = believed_usage(answer, most) if answer.usage is not None else RequestTokens(0, 0)
        return Scores(values, *(usage or most), outcomes=(Outcome.OK if usage else Outcome.UNBELIEVABLE_USAGE,))

    def _score(self, entry: Any, place: int) -> float:
        found = entry if isinstance(entry, dict) else {}
        probs = found.get("probs")
        if found.get("index", place) != place or not isinstance(probs, list) or not probs:
            raise MalformedAnswerError(f"score {place} can't be read: {quote(entry)}")
        if len(probs) > 1:
            raise ModelError(
                f"the model {quote(self.client.model)} at {self.client.base_url} is a classifier of {len(probs)} "
                "labels, and a process reward model has one; give the server of a model that `stairdata train prm` made"
            )
        try:
            return float(probs[0]) if type(probs[0]) in {int, float} else _no_number(place, entry)
        except OverflowError:
            return _no_number(place, entry)


def _no_number(place: int, entry: Any) -> float:
    raise MalformedAnswerError(f"score {place} is no number: {quote(entry)}")


class ServedScorer:
    """Scores by the servers of a model; sequences of all searches in flight share their requests.

    Args:
        pool: the servers.
        tokenizer: of the model.
        context: tokens that it reads at most, if known.
        requests: in flight at most, at each server.
    """

    def __init__(
        self, pool: EndpointPool, tokenizer: Tokenizer, context: int | None = None, requests: int = REQUESTS
    ) -> None:
        self.pool = pool
        self._tokenizer = tokenizer
        self._context = context
        self._joiner = BatchJoiner(self._ask, size=BATCH, at_once=requests * len(pool.clients))

    async def score(self, items: Sequence[ScoreItem]) -> StepScores:
        """Score items.

        Raises:
            RequestFailedError: an answer is longer than the model reads, or the server has no score for it.
            StoppedError: the build is stopped.
            ServerError: the server is gone.
        """
        read = [unscored_ids(self._tokenizer, item, self._context) for item in items]
        sequences = [ids for beginnings in read for ids in beginnings]
        scores = iter(await self._joiner.results(sequences))
        values = [[next(scores) for _ in beginnings] for beginnings in read]
        return StepScores(values, len(sequences), sum(map(len, sequences)))

    def check_server(self) -> None:
        """Raise if the server is known to be dead, as one that was started here is once it has ended.

        Raises:
            ServerError: it is.
        """
        for client in self.pool.clients:
            client.check_server()

    async def close(self) -> None:
        """Give up what is under way."""
        await self._joiner.close()

    async def _ask(self, sequences: list[list[int]]) -> list[float | Exception]:
        """Score a batch; where that fails because of a sequence, only those that ask for this one learn it."""
        try:
            return [*await self.pool.ask(lambda client: PrmClient(client).scores(sequences))]
        except RequestFailedError as error:
            if len(sequences) == 1:
                return [math.nan if NOT_FINITE in error.detail else error]
            if error.outcomes[-1] not in _OF_ONE_SEQUENCE:  # each caller may add to its own
                return [RequestFailedError([*error.outcomes], error.detail) for _ in sequences]
        parts = await asyncio.gather(*(self._ask([ids]) for ids in sequences))
        return [end for part in parts for end in part]


def pools_of(scorer: Scorer | None) -> list[EndpointPool]:
    """Return the servers that a scorer asks; none where it scores in this process."""
    return [scorer.pool] if isinstance(scorer, ServedScorer) else []
