"""OpenAI's Batch API (https://platform.openai.com/docs/guides/batch): requests by file, answers within a day.

The invariant: a batch carries a key that is on disk before the server is asked to make it, and a server that may have
made it is not asked again before its list of batches has been looked through. Whatever is lost on the way, the batch
is found by its key, and none is made twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai
from openai.types import Batch

from stairdata.llm.batches.ledger import BatchJob, BatchReport, Ledger
from stairdata.llm.batches.states import OURS, BatchState, is_known
from stairdata.llm.client import Client
from stairdata.llm.outcomes import MalformedAnswerError, RequestFailedError, check_answer, with_retries
from stairdata.llm.wire.bounded_http import MEBIBYTE, body_limit
from stairdata_schemas.errors import ServerError, quote
from stairdata_schemas.files import sync_file
from stairdata_schemas.network.body_limits import BodyLimit

T = TypeVar("T")
KEY = "stairdata_job"
QUEUE_FULL = "token_limit_exceeded"
"""The code of a batch that failed because it found no room in the account's queue."""
CLOCK_SKEW = 86_400
"""Seconds by which a server's clock may be behind ours. The list comes newest first and may be long: it is read until
batches are older than the one that is looked for, by more than any clock is wrong."""
LIST_LAG = 60.0
"""Seconds by which the list of an account's batches may be behind: one that was just made need not be in it yet."""
MOST_PAGES = 200
"""Of the list of batches; each is a request, and we ask for 100 batches a page."""
MOST_LISTED = 10_000
"""Batches. A list of an account that is longer than that has no end."""
REQUEST_BYTES = 16_384
TOKEN_BYTES = 64
"""What a line of an answer takes up beside its text, and a token of its text: generously, on the average of a file."""
LONGEST_ID = 500
MOST_WORDS = 10_000
MOST_COUNTED = 1_000_000_000
WITHOUT_LIST = {404, 405, 501}
"""Statuses of a server that has no list of batches."""
SURELY_NOT_MADE = {400, 401, 403, 404, 422, 429}
"""The server read the request and refused it. Other errors may come from something in between, after it has acted."""


class BatchApi:
    """Uploads, batches and downloads, with the retries of the client; each method raises ServerError if they fail.

    Servers of other vendors are read leniently where that costs nothing: a batch is known by the file that we uploaded
    for it where the server keeps no metadata, and states in other words are taken for ours. What could be paid for
    twice is not guessed at.

    Args:
        client: the server.
        window: the time in which it is to answer, in its words.
    """

    def __init__(self, client: Client, window: str = "24h") -> None:
        self._client = client
        self._window: Any = window
        self._takes_metadata = True
        self._openai = client.openai

    async def upload(self, path: Path) -> str:
        """Upload a file of requests and return its id; one whose id gets lost costs nothing and is never read."""

        async def uploaded() -> str:
            with path.open("rb") as file:
                uploaded_file = await self._openai.files.create(file=(path.name, file), purpose="batch")
            check_answer(uploaded_file)
            _check_id(uploaded_file.id)
            return uploaded_file.id

        return await self._retried(uploaded)

    async def create(self, job: BatchJob, ledger: Ledger) -> BatchReport:
        """Make a batch of an uploaded file, unless an earlier try has made it."""
        file_id = job.file_id
        assert file_id is not None

        async def created() -> Batch:
            found = await self._search(job, is_certain=True)
            if found is not None:
                return found
            job.asked_at = time.time()
            ledger.save()  # before the request: a kill while it is under way must not hide that it was sent
            try:
                made = await self._made(file_id, job)
            except openai.APIStatusError as error:
                if error.status_code in SURELY_NOT_MADE:
                    job.asked_at = 0.0  # spares the next try the search and its wait
                    ledger.save()
                raise
            return _checked(made)

        return self._report(await self._retried(created))

    async def _made(self, file_id: str, job: BatchJob) -> Batch:
        create = partial(
            self._openai.batches.create,
            input_file_id=file_id,
            endpoint=job.route,
            completion_window=self._window,
        )
        try:
            return await (create(metadata={KEY: job.key}) if self._takes_metadata else create())
        except openai.APIStatusError as error:
            if not self._takes_metadata or error.status_code not in {400, 422} or "metadata" not in str(error):
                raise
        self._takes_metadata = False  # it was not made; without a key, the batch is known by its file
        return await create()

    async def retrieve(self, batch_id: str) -> BatchReport | None:
        """Ask how a batch stands; None where the server no longer knows it."""
        batch = await self._retried(lambda: _unless_gone(self._retrieved(batch_id)))
        return self._report(batch) if batch is not None else None

    async def look_up(self, job: BatchJob) -> BatchReport | None:
        """Look for a batch without an id in the list as it is now."""
        batch = await self._retried(lambda: self._listed(job))
        return self._report(batch) if batch is not None else None

    async def search(self, job: BatchJob) -> BatchReport | None:
        """Find out for certain whether a batch without an id was made."""
        batch = await self._retried(lambda: self._search(job))
        return self._report(batch) if batch is not None else None

    async def cancel(self, batch_id: str) -> BatchReport:
        """End a batch early; what it has answered can be fetched."""

        async def cancelled() -> Batch:
            return _checked(await self._openai.batches.cancel(batch_id))

        return self._report(await self._retried(cancelled))

    async def fetch(self, file_id: str, path: Path, limit: BodyLimit) -> bool:
        """Download a file, whole or not at all; False if the server no longer has it.

        Args:
            file_id: the server's.
            path: where to.
            limit: how large it may be.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

        async def fetched() -> bool:
            content = self._openai.files.with_streaming_response.content(file_id)
            try:
                with body_limit(limit):
                    async with content as response:
                        with temporary.open("wb") as file:
                            async for piece in response.iter_bytes():
                                file.write(piece)
            except httpx2.TimeoutException as error:
                # the openai package wraps only what goes wrong before the body; retries know only its errors
                raise openai.APITimeoutError(request=error.request) from error
            except httpx2.RequestError as error:
                raise openai.APIConnectionError(request=error.request) from error
            return True

        try:
            if not await self._retried(lambda: _unless_gone(fetched())):
                return False
            sync_file(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    async def _retrieved(self, batch_id: str) -> Batch:
        return _checked(await self._openai.batches.retrieve(batch_id))

    async def _search(self, job: BatchJob, *, is_certain: bool = False) -> Batch | None:
        """Look for a batch that may have been made, until it would have to be in the list.

        Raises:
            ServerError: `is_certain`, and the server has no list: it may have the batch, or not.
        """
        if not job.asked_at:
            return None
        found = await self._listed(job, is_needed=is_certain)
        wait = min(LIST_LAG, job.asked_at + LIST_LAG - time.time())  # no longer than that if the clock was set back
        if found is not None or wait <= 0:
            return found
        await self._client.budget.sleep(wait)
        return await self._listed(job)

    async def _listed(self, job: BatchJob, *, is_needed: bool = False) -> Batch | None:
        """Look for a batch among the account's, newest first; a server without a list has none."""
        try:
            page = await self._openai.batches.list(limit=100)
            check_answer(page)
            listed = pages = 0
            async for part in page.iter_pages():
                pages += 1
                listed += len(part.data or [])
                if listed > MOST_LISTED or pages > MOST_PAGES:
                    raise MalformedAnswerError(f"the list of batches has more than {MOST_LISTED:,}, or very many pages")
                for batch in part.data or []:
                    if _is_of(batch, job):
                        return _checked(batch)
                    made_at = getattr(batch, "created_at", None)
                    if isinstance(made_at, int | float) and made_at < job.prepared_at - CLOCK_SKEW:
                        return None
        except openai.APIStatusError as error:
            if error.status_code not in WITHOUT_LIST:
                raise
            if is_needed:
                raise ServerError(
                    f"the server at {self._client.base_url} may have made a batch of the file {quote(job.file_id)}: "
                    "its answer was lost, and it has no list of batches; look for it in the account: where it is not "
                    "there, or was cancelled there, `--batch cancel` lets go of it, and `--batch` submits its requests"
                ) from error
        return None

    async def _retried(self, send: Callable[[], Awaitable[T]]) -> T:
        client = self._client
        try:
            attempt = partial(_readable, send)
            answer, _ = await with_retries(attempt, client.limits, lambda _: None, client.budget.sleep)
        except RequestFailedError as error:
            raise ServerError(
                f"the Batch API at {client.base_url} failed or refused ({error.outcomes[-1]}: "
                f"{quote(client.redact(error.detail))}); nothing is lost: run the same command again, or leave --batch "
                "out if the server has no Batch API"
            ) from error
        except openai.OpenAIError as error:
            raise ServerError(f"the Batch API at {client.base_url}: {quote(client.redact(error))}") from error
        return answer

    def _report(self, batch: Batch) -> BatchReport:
        try:
            errors = [(error.code, error.message) for error in (batch.errors.data if batch.errors else None) or []]
            counts = (batch.request_counts.completed, batch.request_counts.failed) if batch.request_counts else ()
        except (TypeError, AttributeError) as error:
            url, shown = self._client.base_url, quote(batch.id)
            raise ServerError(f"the Batch API at {url} says of batch {shown} what can't be read: {error}") from error
        state = BatchState(batch.status)
        unknown = "" if is_known(batch.status) else f"the server's word for its state is {quote(batch.status)}"
        if state is BatchState.FAILED and batch.output_file_id is not None:
            state = BatchState.EXPIRED  # some was answered, and is paid for
        was_full = batch.status == "failed" and any(code == QUEUE_FULL for code, _ in errors)
        completed, failed = map(_count, counts or (None, None))
        return BatchReport(
            batch.id,
            BatchState.TURNED_AWAY if was_full else BatchState.IN_PROGRESS if state in OURS else state,
            completed,
            failed,
            batch.output_file_id,
            batch.error_file_id,
            self._client.redact("; ".join(f"{code}: {message}" for code, message in errors[:3]) or unknown)[
                :MOST_WORDS
            ],
        )


def _is_of(batch: Batch, job: BatchJob) -> bool:
    """Tell a batch by our key, or by the file that was uploaded for it alone; not every server keeps metadata."""
    metadata = batch.metadata
    if isinstance(metadata, dict) and metadata.get(KEY) == job.key:
        return True
    return job.file_id is not None and getattr(batch, "input_file_id", None) == job.file_id


def answers_limit(job: BatchJob) -> BodyLimit:
    """Return how large a file of a batch's answers may be."""
    return BodyLimit(MEBIBYTE + job.requests * REQUEST_BYTES + job.most_tokens * TOKEN_BYTES, None)


def _checked(batch: Batch) -> Batch:
    """Refuse an answer that is an error or no batch; a failed batch says what went wrong in `errors`, which is none."""
    if not getattr(batch, "id", None):
        check_answer(batch)
        raise MalformedAnswerError("the answer is not a batch")
    for id_ in (batch.id, batch.output_file_id, batch.error_file_id):
        if id_ is not None:
            _check_id(id_)
    return batch


def _check_id(id_: object) -> None:
    """Refuse what can't be an id: it is kept, put into addresses, and shown."""
    if not isinstance(id_, str) or not 0 < len(id_) <= LONGEST_ID or not id_.isprintable():
        raise MalformedAnswerError(f"the server gives {quote(id_)} as an id")


def _count(number: object) -> int | None:
    """Return how many requests a server counts; None where it can't be so many."""
    return number if type(number) is int and 0 <= number < MOST_COUNTED else None


async def _readable(send: Callable[[], Awaitable[T]]) -> T:
    """Wait for an answer; one of a shape that no server should send makes the openai package stumble, or us."""
    try:
        return await send()
    except (TypeError, AttributeError) as error:
        raise MalformedAnswerError(f"the answer can't be read: {error}") from error


async def _unless_gone(answer: Awaitable[T]) -> T | None:
    """Wait for an answer; None where the server says that there is no such thing."""
    try:
        return await answer
    except openai.NotFoundError:
        return None
