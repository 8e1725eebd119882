"""Clients whose requests are answered by batches: a workload runs on them as it runs on live ones.

A request that no batch has answered is written down, and the unit that asked for it is put off. So a workload may ask
whatever it likes, in as many rounds as it needs: each run on these clients gets as far as the answers go. That needs
requests that are the same in each run, which seeds out of the recipe make them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

from stairdata.llm.batches.answers import read_answer
from stairdata.llm.batches.ledger import CHATS, COMPLETIONS, BatchRequest, RequestForm
from stairdata.llm.batches.queue import BatchQueue
from stairdata.llm.budget import StoppedError
from stairdata.llm.client import Client, Generation, RequestTokens, completion_body
from stairdata.llm.outcomes import MalformedAnswerError, Outcome, RequestFailedError
from stairdata.llm.session import MakeClient
from stairdata.llm.tokens import TokenCount, token_count

ID_DIGITS = 32
Asking = Literal["batches", "live", "later"]
"""What becomes of a request that no batch has answered. batches: it is to be submitted. live: it is sent. later: it is
for a server that another run asks live."""


class NotAnsweredError(StoppedError):
    """A request without an answer so far: its unit is neither made nor refused."""


class BatchedRequests:
    """What one run asks for that batches answer, or are to answer.

    Args:
        queue: the build's.
    """

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self.clear()

    def clear(self) -> None:
        """Forget what was asked for, before another run asks."""
        self.missing: dict[int, dict[str, BatchRequest]] = defaultdict(dict)
        """By the number of their endpoint: those that are neither answered, nor in progress, nor hopeless."""
        self.in_progress: set[str] = set()
        self.needs_live = False
        """Something was asked for that has to be asked live."""
        self._pending = self._queue.pending

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for was known."""
        return not any(self.missing.values()) and not self.in_progress and not self.needs_live

    def find(self, request: BatchRequest) -> Any:
        """Return the body of the answer to a request; None where there is none yet.

        Raises:
            RequestFailedError: it has failed, as often as it is tried.
        """
        results = self._queue.results
        body = results.body(request.id)
        if body is None and results.is_over(request.id):
            failure = results.failures[request.id]
            raise RequestFailedError(failure.outcomes, failure.detail)
        return body

    def want(self, number: int, request: BatchRequest) -> None:
        """Note that a request is to be answered by a batch."""
        if request.id in self._pending:
            self.in_progress.add(request.id)
        else:
            self.missing[number].setdefault(request.id, request)

    def client_maker(self, number: int, asking: Asking) -> MakeClient:
        """Return what makes the client of an endpoint.

        Args:
            number: the endpoint's, in the queue.
            asking: what becomes of requests without an answer.
        """
        return partial(BatchClient, requests=self, number=number, asking=asking)


class BatchClient(Client):
    """A client that takes the answers of batches."""

    def __init__(self, *arguments: Any, requests: BatchedRequests, number: int, asking: Asking, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._requests = requests
        self._number = number
        self._asking = asking
        self._counted: TokenCount | None = None

    async def _complete(
        self, prompt: str | list[int], n: int, most: RequestTokens, seed: int, sampling: dict[str, Any]
    ) -> Generation:
        limit = most.completion_tokens
        body = completion_body(
            self._endpoint.name, prompt, self._endpoint, n=n, max_tokens=limit, seed=seed, **sampling
        )
        form = RequestForm(COMPLETIONS, n)
        request = BatchRequest(request_id(self._number, form, body), body, most.prompt_tokens, form)
        most_of_all = most._replace(completion_tokens=n * limit)
        live = partial(super()._complete, prompt, n, most, seed, sampling)
        return await self._answer(request, lambda found: read_answer(found, form, most_of_all), live)

    async def _chat(self, body: dict[str, Any], limit_name: str, *, is_whole: bool) -> Generation:
        sent = self.chat_request(body, limit_name) | {"model": self._endpoint.name}
        form = RequestForm(CHATS)
        text = "".join(str(message.get("content")) for message in body["messages"])
        request = BatchRequest(request_id(self._number, form, sent), sent, self._count(text), form)
        live = partial(super()._chat, body, limit_name, is_whole=is_whole)
        return await self._answer(request, lambda found: read_answer(found, form, is_whole=is_whole), live)

    async def _answer(
        self, request: BatchRequest, read: Callable[[Any], Generation], live: Callable[[], Awaitable[Generation]]
    ) -> Generation:
        try:
            found = self._requests.find(request)
        except RequestFailedError:
            if self._asking != "live":
                raise
            found = None  # live it may go better
        if found is not None:
            try:
                return read(found)
            except MalformedAnswerError as error:  # it could be read as it was collected
                raise RequestFailedError([Outcome.MALFORMED], str(error)) from error
        if self._asking == "live":
            return await live()
        if self._asking == "batches":
            self._requests.want(self._number, request)
        else:
            self._requests.needs_live = True
        raise NotAnsweredError

    def _count(self, text: str) -> int:
        if self._counted is None:
            self._counted = token_count(self._endpoint)
        return self._counted.count(text)


def request_id(number: int, form: RequestForm, body: dict[str, Any]) -> str:
    """Return the id of a request: a hash of all that is asked, so that the same is asked once."""
    asked = json.dumps([form.route, body], sort_keys=True, separators=(",", ":"))
    return f"{number}-{hashlib.sha256(asked.encode()).hexdigest()[:ID_DIGITS]}"
