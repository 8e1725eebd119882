"""OpenAI's Batch API (https://platform.openai.com/docs/guides/batch): requests by file, answers within a day.

What is asked is written down before it is sent, under a key that the server keeps beside the batch: whatever gets
lost on the way, the next run finds the batch by its key and never submits one twice.
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

from stairdata.llm.batch_ledger import ENDPOINT, LOST, TURNED_AWAY, Job, Ledger
from stairdata.llm.client import Client
from stairdata.llm.outcomes import (
    RETRIED,
    Outcome,
    RequestFailedError,
    with_retries,
)
from stairdata_schemas.errors import ServerError, quote
from stairdata_schemas.files import sync_file

T = TypeVar("T")
KEY = "stairdata_job"
CLOCK_SKEW = 86_400  # seconds by which a server's clock may be behind ours
QUEUE_FULL = "token_limit_exceeded"
LIST_LAG = 60.0  # seconds by which the list of an account's batches may be behind
SURELY_NOT_MADE = {400, 401, 403, 404, 429}


class BatchApi:
    """Uploads, batches and downloads, with the retries of the client.

    Args:
        client: the server.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._openai = client.openai

    async def submit(self, job: Job, ledger: Ledger) -> None:
        """Send a job, or find out that it was sent already; each id is on disk before anything else happens.

        Raises:
            ServerError: the server can't be reached, or refuses; the job stays in the ledger.
        """
        if job.batch_id is not None:
            return
        if job.file_id is None:
            job.file_id = await self._upload(ledger.requests_file(job))
            ledger.save()
        self._note(job, await self._create(job, ledger), ledger)

    async def refresh(self, job: Job, ledger: Ledger) -> None:
        """Ask how a job stands.

        Raises:
            ServerError: the server can't be reached, or does not know it.
        """
        if job.batch_id is None:
            if job.file_id is not None:
                self._note(job, await self._sent(lambda: self._lookup(job)), ledger)
            return
        batch_id = job.batch_id
        batch = await self._sent(lambda: _unless_gone(self._openai.batches.retrieve(batch_id)))
        if batch is None:
            ledger.let_go(job, LOST)
        self._note(job, batch, ledger)

    async def cancel(self, job: Job, ledger: Ledger) -> None:
        """End a job early; what it has answered can be collected.

        Raises:
            ServerError: the server can't be reached, or refuses.
        """
        batch_id = job.batch_id
        assert batch_id is not None
        self._note(job, await self._sent(lambda: self._openai.batches.cancel(batch_id)), ledger)

    async def download(self, job: Job, ledger: Ledger) -> None:
        """Fetch a job's answers and errors.

        Raises:
            ServerError: the server can't be reached, or has them no more.
        """
        for file_id, path in zip((job.output_file_id, job.error_file_id), ledger.answer_files(job), strict=True):
            if file_id is not None and not await self._fetch(file_id, path):
                job.status = LOST

    async def _fetch(self, file_id: str, path: Path) -> bool:
        """Download a file; False if it is there no more."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

        async def fetched() -> bool:
            async with self._openai.files.with_streaming_response.content(file_id) as response:
                try:
                    with temporary.open("wb") as file:
                        async for piece in response.iter_bytes():
                            file.write(piece)
                except httpx2.TransportError as error:  # cut off on the way: the client knows only how it begins
                    raise openai.APIConnectionError(request=response.http_request) from error
            return True

        if not await self._sent(lambda: _unless_gone(fetched())):
            return False
        sync_file(temporary)
        temporary.replace(path)
        return True

    async def _upload(self, path: Path) -> str:
        async def uploaded() -> str:
            with path.open("rb") as file:
                return (await self._openai.files.create(file=(path.name, file), purpose="batch")).id

        return await self._sent(uploaded)

    async def _create(self, job: Job, ledger: Ledger) -> Batch:
        """Create a job's batch; an answer that was lost may have created it, so each further try looks first."""
        file_id = job.file_id
        assert file_id is not None

        async def created() -> Batch:
            found = await self._search(job)
            if found is not None:
                return found
            job.asked_at = time.time()
            ledger.save()
            try:
                return await self._openai.batches.create(
                    input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={KEY: job.key}
                )
            except openai.APIStatusError as error:
                if error.status_code in SURELY_NOT_MADE:
                    job.asked_at = 0.0
                    ledger.save()
                raise

        return await self._sent(created)

    async def find(self, job: Job, ledger: Ledger) -> None:
        """Find out whether a job without an id was submitted.

        Raises:
            ServerError: the server can't be reached, or refuses.
        """
        self._note(job, await self._sent(lambda: self._search(job)), ledger)

    async def _search(self, job: Job) -> Batch | None:
        """Look for a batch that may have been made, until it would have to be in the list."""
        if not job.asked_at:
            return None
        found = await self._lookup(job)
        wait = min(LIST_LAG, job.asked_at + LIST_LAG - time.time())
        if found is not None or wait <= 0:
            return found
        await self._client.budget.sleep(wait)
        return await self._lookup(job)

    async def _lookup(self, job: Job) -> Batch | None:
        """Look for a job's batch among the account's, newest first; a server without a list has none."""
        try:
            async for batch in self._openai.batches.list(limit=100):
                if (batch.metadata or {}).get(KEY) == job.key:
                    return batch
                if batch.created_at < job.prepared_at - CLOCK_SKEW:
                    break
        except openai.NotFoundError:
            pass
        return None

    async def _sent(self, send: Callable[[], Awaitable[T]]) -> T:
        client = self._client
        try:
            answer, _ = await with_retries(send, client.limits, lambda _: None, client.budget.sleep)
        except RequestFailedError as error:
            raise ServerError(
                f"the Batch API at {client.base_url} failed or refused ({error.outcomes[-1]}: "
                f"{quote(client.redact(error.detail))}); nothing is lost: run the same command again, or leave --batch "
                "out where the server has no Batch API"
            ) from error
        except openai.OpenAIError as error:
            raise ServerError(f"the Batch API at {client.base_url}: {quote(client.redact(error))}") from error
        return answer

    def _note(self, job: Job, batch: Batch | None, ledger: Ledger) -> None:
        if batch is None:
            return
        job.batch_id, job.status = batch.id, batch.status
        if batch.request_counts is not None:
            job.completed, job.failed = batch.request_counts.completed, batch.request_counts.failed
        job.output_file_id, job.error_file_id = batch.output_file_id, batch.error_file_id
        errors = (batch.errors.data if batch.errors else None) or []
        job.error = self._client.redact("; ".join(f"{error.code}: {error.message}" for error in errors[:3]))
        if batch.status == "failed" and any(error.code == QUEUE_FULL for error in errors):
            job.status = TURNED_AWAY
        ledger.save()


async def _unless_gone(answer: Awaitable[T]) -> T | None:
    """Wait for an answer; None where the server knows the thing no more."""
    try:
        return await answer
    except openai.NotFoundError:
        return None


def is_worth_another_try(outcome: Outcome) -> bool:
    """Tell whether a request that ended so in a batch may go better in the next one."""
    return outcome in RETRIED
