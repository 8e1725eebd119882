"""OpenAI's Batch API (https://platform.openai.com/docs/guides/batch): requests by file, answers within a day.

The invariant: a batch carries a key that is on disk before the server is asked to make it, and a server that may have
made it is not asked again before its list of batches has been looked through. Whatever is lost on the way, the batch
is found by its key, and none is made twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import httpx2
import openai
from openai.types import Batch

from stairdata.llm.batch_ledger import ENDPOINT, BatchJob, BatchReport, Ledger
from stairdata.llm.batch_states import BatchState
from stairdata.llm.client import Client
from stairdata.llm.outcomes import MalformedAnswerError, RequestFailedError, check_answer, with_retries
from stairdata_schemas.errors import ServerError, quote
from stairdata_schemas.files import sync_file

T = TypeVar("T")
KEY = "stairdata_job"
QUEUE_FULL = "token_limit_exceeded"
"""The code of a batch that failed because it found no room in the account's queue."""
CLOCK_SKEW = 86_400
"""Seconds by which a server's clock may be behind ours. The list comes newest first and may be long: it is read until
batches are older than the one that is looked for, by more than any clock is wrong."""
LIST_LAG = 60.0
"""Seconds by which the list of an account's batches may be behind: one that was just made need not be in it yet."""
SURELY_NOT_MADE = {400, 401, 403, 404, 429}
"""The server read the request and refused it. Other errors may come from something in between, after it has acted."""


class BatchApi:
    """Uploads, batches and downloads, with the retries of the client; each method raises ServerError if they fail.

    Args:
        client: the server.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._openai = client.openai

    async def upload(self, path: Path) -> str:
        """Upload a file of requests and return its id; one whose id gets lost costs nothing and is never read."""

        async def uploaded() -> str:
            with path.open("rb") as file:
                uploaded_file = await self._openai.files.create(file=(path.name, file), purpose="batch")
            check_answer(uploaded_file)
            return uploaded_file.id

        return await self._retried(uploaded)

    async def create(self, job: BatchJob, ledger: Ledger) -> BatchReport:
        """Make a batch of an uploaded file, unless an earlier try has made it."""
        file_id = job.file_id
        assert file_id is not None

        async def created() -> Batch:
            found = await self._search(job)
            if found is not None:
                return found
            job.asked_at = time.time()
            ledger.save()  # before the request: a kill while it is under way must not hide that it was sent
            try:
                made = await self._openai.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={KEY: job.key}
                )
            except openai.APIStatusError as error:
                if error.status_code in SURELY_NOT_MADE:
                    job.asked_at = 0.0  # spares the next try the search and its wait
                    ledger.save()
                raise
            return _checked(made)

        return self._report(await self._retried(created))

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

    async def fetch(self, file_id: str, path: Path) -> bool:
        """Download a file, whole or not at all; False if the server no longer has it."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

        async def fetched() -> bool:
            async with self._openai.files.with_streaming_response.content(file_id) as response:
                try:
                    with temporary.open("wb") as file:
                        async for piece in response.iter_bytes():
                            file.write(piece)
                except httpx2.TransportError as error:
                    # the openai package wraps only what goes wrong before the body; retries know only its errors
                    raise openai.APIConnectionError(request=response.http_request) from error
            return True

        if not await self._retried(lambda: _unless_gone(fetched())):
            return False
        sync_file(temporary)
        temporary.replace(path)
        return True

    async def _retrieved(self, batch_id: str) -> Batch:
        return _checked(await self._openai.batches.retrieve(batch_id))

    async def _search(self, job: BatchJob) -> Batch | None:
        """Look for a batch that may have been made, until it would have to be in the list."""
        if not job.asked_at:
            return None
        found = await self._listed(job)
        wait = min(LIST_LAG, job.asked_at + LIST_LAG - time.time())  # no longer than that if the clock was set back
        if found is not None or wait <= 0:
            return found
        await self._client.budget.sleep(wait)
        return await self._listed(job)

    async def _listed(self, job: BatchJob) -> Batch | None:
        """Look for a batch among the account's, newest first; a server without a list has none."""
        try:
            page = await self._openai.batches.list(limit=100)
            check_answer(page)
            async for batch in page:
                if (batch.metadata or {}).get(KEY) == job.key:
                    return batch
                if batch.created_at < job.prepared_at - CLOCK_SKEW:
                    break
        except openai.NotFoundError:
            pass
        return None

    async def _retried(self, send: Callable[[], Awaitable[T]]) -> T:
        client = self._client
        try:
            answer, _ = await with_retries(send, client.limits, lambda _: None, client.budget.sleep)
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
        errors = (batch.errors.data if batch.errors else None) or []
        was_full = batch.status == "failed" and any(error.code == QUEUE_FULL for error in errors)
        counts = batch.request_counts
        return BatchReport(
            batch.id,
            BatchState.TURNED_AWAY if was_full else BatchState(batch.status),
            counts.completed if counts else None,
            counts.failed if counts else None,
            batch.output_file_id,
            batch.error_file_id,
            self._client.redact("; ".join(f"{error.code}: {error.message}" for error in errors[:3])),
        )


def _checked(batch: Batch) -> Batch:
    """Refuse an answer that is an error; a failed batch says what went wrong in `errors`, which is no such error."""
    if not getattr(batch, "id", None):
        check_answer(batch)
        raise MalformedAnswerError("the answer is not a batch")
    return batch


async def _unless_gone(answer: Awaitable[T]) -> T | None:
    """Wait for an answer; None where the server says that there is no such thing."""
    try:
        return await answer
    except openai.NotFoundError:
        return None
