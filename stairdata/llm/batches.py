"""OpenAI's Batch API (https://platform.openai.com/docs/guides/batch): requests by file, answers within a day.

What is asked is written down before it is sent, under a key that the server keeps beside the batch: whatever gets
lost on the way, the next run finds the batch by its key and never submits one twice.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import httpx2
import openai
from openai.types import Batch
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from stairdata.llm.budget import Spent
from stairdata.llm.client import Client, Generation, read_chat, whole_number
from stairdata.llm.outcomes import (
    RETRIED,
    MalformedAnswerError,
    Outcome,
    RequestFailedError,
    has_no_format,
    outcome_of_status,
    with_retries,
)
from stairdata_schemas.errors import ArtifactError, ServerError, quote
from stairdata_schemas.files import sync_file, write_atomic

T = TypeVar("T")
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
KEY = "stairdata_job"
LEDGER = "ledger.json"
CLOCK_SKEW = 86_400  # seconds by which a server's clock may be behind ours
PREPARED = "prepared"
LOST = "lost"
TURNED_AWAY = "turned_away"
ENDED = {"completed", "failed", "expired", "cancelled"}
QUEUE_FULL = "token_limit_exceeded"


class Item(NamedTuple):
    """A request of a batch."""

    id: str
    body: dict[str, Any]
    prompt_tokens: int
    most: Spent
    """The most that it can take."""


class Job(BaseModel):
    """A batch, from before it is sent until its answers are here."""

    key: str
    teacher: int
    requests: int
    prompt_tokens: int
    most_tokens: int
    most_cost: float
    prepared_at: float
    file_id: str | None = None
    batch_id: str | None = None
    status: str = PREPARED
    """The server's word for it; or prepared (not sent for sure), turned_away (its queue was full), or lost (the server
    knows it, or its answers, no more)."""
    completed: int = 0
    failed: int = 0
    error: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    is_collected: bool = False
    spent_tokens: int = 0
    spent_cost: float = 0.0

    @property
    def is_pending(self) -> bool:
        """Its requests may still be answered."""
        return not self.is_collected and self.status not in {TURNED_AWAY, LOST, "failed"}

    @property
    def counts_as(self) -> Spent:
        """What it has cost, or can cost."""
        if self.is_pending:
            return Spent(self.most_tokens, self.most_cost)
        return Spent(self.spent_tokens, self.spent_cost)


class Limits(NamedTuple):
    """How large a batch may be."""

    requests: int
    bytes: int
    prompt_tokens: int | None


class Answer(NamedTuple):
    """Where an answer stands."""

    path: Path
    begin: int


class Ledger:
    """The batches of a build, on disk.

    Args:
        folder: where requests, answers and the ledger are.

    Raises:
        ArtifactError: the ledger can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[Job] = []
        self._token = secrets.token_hex(8)  # keys of a build begun anew are not those of the old one
        if not (folder / LEDGER).exists():
            return
        try:
            data = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
            self._token = data["token"]
            self.jobs = [Job.model_validate(job) for job in data["jobs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"the ledger of batches {folder / LEDGER} can't be read: {error}; put back a copy of it, or cancel the "
                "batches at the provider and start over with --fresh"
            ) from error

    def save(self) -> None:
        """Write it down for good."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {"token": self._token, "jobs": [job.model_dump() for job in self.jobs]}
        write_atomic(self.folder / LEDGER, json.dumps(data, indent=1))

    def spent(self) -> Spent:
        """Sum up what all batches have cost, and what those under way can cost."""
        total = Spent()
        for job in self.jobs:
            total = total.plus(job.counts_as)
        return total

    def enqueued(self, teacher: int) -> int:
        """Return the prompt tokens of a teacher's batches under way."""
        jobs = (job for job in self.jobs if job.teacher == teacher and not job.is_collected)
        return sum(job.prompt_tokens for job in jobs if job.status not in _OVER)

    def pending(self) -> set[str]:
        """Return the ids of requests that may still be answered."""
        return {id_ for job in self.jobs if job.is_pending for id_ in self._ids(job)}

    def let_go(self, job: Job, status: str) -> None:
        """Count a job's requests as missing again."""
        job.status, job.is_collected = status, True
        self.save()

    def forget_unsent(self) -> None:
        """Let go of jobs that never left this machine."""
        for job in self.jobs:
            if job.is_pending and job.file_id is None:
                self.let_go(job, "cancelled")

    def blocker(self, job: Job) -> str | None:
        """Return what the server says where it refuses all requests of a job alike, not one for what it asks."""
        for path in self.answer_files(job):
            for _, line in _lines(path):
                refusal = _refusal(_record(line))
                if _is_for_all(*refusal):
                    return refusal[2]
        return None

    def requests_file(self, job: Job) -> Path:
        """Return the file that is uploaded."""
        return self.folder / f"{job.key}.jsonl"

    def answer_files(self, job: Job) -> tuple[Path, Path]:
        """Return the files of answers and of errors."""
        return self.folder / f"{job.key}.output.jsonl", self.folder / f"{job.key}.errors.jsonl"

    def prepare(self, teacher: int, items: Iterable[Item], limits: Limits) -> tuple[Job | None, Item | None]:
        """Write as many requests as one batch may hold, and the job into the ledger.

        Returns:
            The job, if there was a request, and the first request that found no room.
        """
        key = f"{self._token}-{len(self.jobs):05d}"
        job = Job(key=key, teacher=teacher, requests=0, prompt_tokens=0, most_tokens=0, most_cost=0, prepared_at=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, ids, size, left = self.requests_file(job), [], 0, None
        with path.open("wb") as file:
            for item in items:
                line = _line(item)
                if job.requests and not _fits(job, size + len(line), item, limits):
                    left = item
                    break
                file.write(line)
                ids.append(item.id)
                size += len(line)
                job.requests += 1
                job.prompt_tokens += item.prompt_tokens
                job.most_tokens += item.most.tokens
                job.most_cost += item.most.cost
        if not job.requests:
            path.unlink()
            return None, left
        sync_file(path)
        write_atomic(self._ids_file(job), "\n".join(ids))
        job.prepared_at = time.time()
        self.jobs.append(job)
        self.save()
        return job, left

    def results(self) -> tuple[dict[str, Answer], dict[str, list[Outcome]], dict[str, str]]:
        """Read what was collected.

        Returns:
            Where each answer stands; how the attempts at each request without one ended; and the servers' words on
            the last of them.
        """
        answers: dict[str, Answer] = {}
        failures: dict[str, list[Outcome]] = {}
        details: dict[str, str] = {}
        for job in self.jobs:
            if not job.is_collected:
                continue
            for path in self.answer_files(job):
                for begin, line in _lines(path):
                    id_, failure = _read_line(line)
                    if id_ is None:
                        continue
                    if failure is None:
                        answers.setdefault(id_, Answer(path, begin))
                    else:
                        failures.setdefault(id_, []).append(failure.outcomes[-1])
                        details[id_] = failure.detail
        return answers, failures, details

    def spent_by(self, job: Job, price: Callable[[int, int], Spent]) -> Spent:
        """Sum up what a job's answers used up, refused ones included."""
        total = Spent()
        for path in self.answer_files(job):
            for _, line in _lines(path):
                body = _body(line)
                usage = body.get("usage") if isinstance(body, dict) else None
                if isinstance(usage, dict):
                    read, written = (whole_number(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
                    total = total.plus(price(read, written))
        return total

    def _ids(self, job: Job) -> list[str]:
        return self._ids_file(job).read_text(encoding="utf-8").split()

    def _ids_file(self, job: Job) -> Path:
        return self.folder / f"{job.key}.ids"


_OVER = ENDED | {TURNED_AWAY, LOST}


def read_answer(answer: Answer) -> Generation:
    """Read an answer as if it had come at once.

    Raises:
        RequestFailedError: the model refused, or a filter withheld the answer.
    """
    with answer.path.open("rb") as file:
        file.seek(answer.begin)
        return _generation(_body(file.readline()))


def _fits(job: Job, size: int, item: Item, limits: Limits) -> bool:
    return (
        job.requests < limits.requests
        and size <= limits.bytes
        and (limits.prompt_tokens is None or job.prompt_tokens + item.prompt_tokens <= limits.prompt_tokens)
    )


def _line(item: Item) -> bytes:
    request = {"custom_id": item.id, "method": "POST", "url": ENDPOINT, "body": item.body}
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.exists():
        return
    begin = 0
    with path.open("rb") as file:
        for line in file:
            yield begin, line
            begin += len(line)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _body(line: bytes) -> Any:
    response = _record(line).get("response")
    return response.get("body") if isinstance(response, dict) else None


def _read_line(line: bytes) -> tuple[str | None, RequestFailedError | None]:
    """Return whose line it is, and the failure it tells of, if it does; None for a line that is nobody's."""
    record = _record(line)
    id_ = record.get("custom_id")
    if not isinstance(id_, str):
        return None, None
    status, code, message = _refusal(record)
    if status is None or _is_for_all(status, code, message):
        return None, None  # it never came to its turn (expired, cancelled), or nobody's would have
    if status != 200:
        return id_, RequestFailedError([outcome_of_status(status, code)], message)
    try:
        _generation(_body(line))
    except MalformedAnswerError as error:
        return id_, RequestFailedError([Outcome.MALFORMED], str(error))
    except RequestFailedError:
        pass  # an answer too: it is read again, and refused, where its prompt's turn comes
    return id_, None


def _refusal(record: dict[str, Any]) -> tuple[int | None, str | None, str]:
    """Return status, code and message of an answer; without a status it was never asked."""
    response = record.get("response")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code"), response.get("body")
    error = record.get("error") or (body.get("error") if isinstance(body, dict) else None)
    error = error if isinstance(error, dict) else {"message": error}
    code = error.get("code")
    words = str(error.get("message") or code)
    return status if isinstance(status, int) else None, code if isinstance(code, str) else None, words


def _is_for_all(status: int | None, code: str | None, message: str) -> bool:
    is_account = status in {401, 403} or code in {"insufficient_quota", "billing_hard_limit_reached"}
    return is_account or (status == 400 and has_no_format(message))


def _generation(body: Any) -> Generation:
    if not isinstance(body, dict):
        raise MalformedAnswerError("the answer is no chat completion")
    return read_chat(ChatCompletion.construct(**body))  # as lenient as the client is with answers that come at once


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
        if job.batch_id is None and job.file_id is not None:
            self._note(job, await self._find(job), ledger)
        if job.batch_id is not None:
            return
        if job.file_id is None:
            job.file_id = await self._upload(ledger.requests_file(job))
            ledger.save()
        self._note(job, await self._create(job), ledger)

    async def refresh(self, job: Job, ledger: Ledger) -> None:
        """Ask how a job stands.

        Raises:
            ServerError: the server can't be reached, or does not know it.
        """
        if job.batch_id is None:
            if job.file_id is not None:
                self._note(job, await self._find(job), ledger)
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

    async def _create(self, job: Job) -> Batch:
        """Create a job's batch; an answer that was lost may have created it, so each further try looks first."""
        file_id = job.file_id
        assert file_id is not None
        is_first = True

        async def created() -> Batch:
            nonlocal is_first
            found = None if is_first else await self._lookup(job)
            is_first = False
            return found or await self._openai.batches.create(
                input_file_id=file_id, endpoint=ENDPOINT, completion_window="24h", metadata={KEY: job.key}
            )

        return await self._sent(created)

    async def _find(self, job: Job) -> Batch | None:
        return await self._sent(lambda: self._lookup(job))

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
