"""The batches of a build on disk: what is asked is written down before it is sent, what is answered is found again.

Beside ledger.json, each batch has three kinds of files named by its key: the requests as they are uploaded
(KEY.jsonl), their ids (KEY.ids), and what the server answered (KEY.output.jsonl, KEY.errors.jsonl). Unfinished builds
have such files, so that names, keys and words stay as they are.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from stairdata.llm.batches.states import ANSWERED, QUEUED, BatchEvent, BatchStanding, BatchState
from stairdata.llm.budget import Expense
from stairdata_schemas.errors import ArtifactError
from stairdata_schemas.files import sync_file, write_atomic
from stairdata_schemas.formats.unique_keys import KeyTwiceError, loads

Route = Literal["/v1/chat/completions", "/v1/completions"]
CHATS: Route = "/v1/chat/completions"
COMPLETIONS: Route = "/v1/completions"
LEDGER = "ledger.json"
LATER = {"place": None, "route": CHATS, "samples": 1}
"""What ledgers of the first release have not, and what it was then."""


class RequestForm(NamedTuple):
    """What requests that may be in one batch have in common, and how their answers are read."""

    route: Route = CHATS
    samples: int = 1


class BatchRequest(NamedTuple):
    """A request of a batch."""

    id: str
    """Unique among the requests of all of the build's batches that may be answered; comes back with the answer."""
    body: dict[str, Any]
    """As `client.chat_body` or `client.completion_body` makes it."""
    prompt_tokens: int
    """As the account's queue counts them."""
    form: RequestForm = RequestForm()


class BatchLimits(NamedTuple):
    """How large batches may be."""

    requests: int
    """Of one batch."""
    bytes: int
    """Of the file of one batch."""
    prompt_tokens: int | None
    """Of all batches in the account's queue; None is no limit."""
    window: str = "24h"
    """In which the server is to answer."""


class BatchReport(NamedTuple):
    """What a server says of a batch."""

    batch_id: str
    state: BatchState
    completed: int | None
    failed: int | None
    """Requests; None where the server does not count them."""
    output_file_id: str | None
    error_file_id: str | None
    error: str
    """Why it was refused as a whole."""


class BatchJob(BaseModel):
    """A batch, from before it is sent until its answers are here."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    key: str
    """Ours; the server keeps it beside the batch, which is found by it."""
    endpoint: int = Field(alias="teacher")
    """The number of the server that it is for."""
    place: str | None = None
    """Folder of a batch that is run from a file; None: the server's Batch API."""
    route: Route = CHATS
    samples: int = 1
    """That each of its requests asks for."""
    requests: int
    prompt_tokens: int
    most_tokens: int
    """Prompt and completion tokens that its answers can take."""
    most_cost: float
    prepared_at: float
    """Seconds since 1970."""
    file_id: str | None = None
    """The server's, of the uploaded requests."""
    asked_at: float = 0.0
    """When the server was last asked to make it; it may have done so even where its answer was lost."""
    batch_id: str | None = None
    """The server's."""
    state: BatchState = Field(BatchState.PREPARED, alias="status")
    completed: int = 0
    failed: int = 0
    error: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    is_closed: bool = Field(default=False, alias="is_collected")
    spent_tokens: int = 0
    """That its answers took, once they are here."""
    spent_cost: float = 0.0

    @property
    def form(self) -> RequestForm:
        return RequestForm(self.route, self.samples)

    @property
    def is_open(self) -> bool:
        """Whether its requests may still be answered, so that they must not be submitted again."""
        return BatchStanding(self.state, self.is_closed).is_open

    @property
    def counts_as(self) -> Expense:
        """What it has cost, or can cost."""
        if self.is_open:
            return Expense(self.most_tokens, self.most_cost)
        return Expense(self.spent_tokens, self.spent_cost)

    def apply(self, event: BatchState | BatchEvent) -> None:
        """Stand as the table of transitions says after an event.

        Raises:
            BatchTransitionError: it can't happen to a batch that stands so.
        """
        self.state, self.is_closed = BatchStanding(self.state, self.is_closed).after(event)


class Ledger:
    """The batches of a build, on disk.

    Args:
        folder: where requests, answers and the ledger are.

    Raises:
        ArtifactError: the ledger can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[BatchJob] = []
        self._token = secrets.token_hex(8)  # keys of a build that was started over are not those of the old one
        if not (folder / LEDGER).exists():
            return
        try:
            data = loads((folder / LEDGER).read_text(encoding="utf-8"))
            self._token = data["token"]
            self.jobs = [BatchJob.model_validate(job) for job in data["jobs"]]
        except (OSError, ValueError, KeyError, TypeError, KeyTwiceError) as error:
            raise ArtifactError(
                f"the ledger of batches {folder / LEDGER} can't be read: {error}; put back a copy of it, or cancel the "
                f"batches at the provider and remove the folder {folder}"
            ) from error
        for job in self.jobs:
            self._notice_removed(job)

    def save(self) -> None:
        """Write it to disk, so that it survives SIGKILL and a power cut."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {"token": self._token, "jobs": list(map(_written, self.jobs))}
        write_atomic(self.folder / LEDGER, json.dumps(data, indent=1))

    def apply(self, job: BatchJob, event: BatchEvent) -> None:
        """Note what happened to a batch."""
        job.apply(event)
        self.save()

    def note(self, job: BatchJob, report: BatchReport) -> None:
        """Note what the server says of a batch."""
        job.apply(report.state)
        job.batch_id = report.batch_id
        if report.completed is not None and report.failed is not None:
            job.completed, job.failed = report.completed, report.failed
        job.output_file_id, job.error_file_id, job.error = report.output_file_id, report.error_file_id, report.error
        self.save()

    def spent(self) -> Expense:
        """Return what closed batches have cost, and the most that open ones can cost."""
        total = Expense()
        for job in self.jobs:
            total = total.plus(job.counts_as)
        return total

    def enqueued(self, endpoints: Container[int]) -> int:
        """Return the prompt tokens that the batches of some endpoints have in the account's queue."""
        jobs = (job for job in self.jobs if job.endpoint in endpoints and job.is_open and job.state in QUEUED)
        return sum(job.prompt_tokens for job in jobs)

    def pending(self) -> set[str]:
        """Return the ids of requests that may still be answered.

        Raises:
            ArtifactError: the files of a batch were removed, so that nobody knows.
        """
        return {id_ for job in self.jobs if job.is_open for id_ in self.ids(job)}

    def times_lost(self) -> Counter[str]:
        """Return how many batches with each request the server forgot, or deleted the answers of.

        Raises:
            ArtifactError: the files of a batch were removed, so that nobody knows.
        """
        lost = (job for job in self.jobs if job.state is BatchState.LOST)
        return Counter(id_ for job in lost for id_ in self.ids(job))

    def ids(self, job: BatchJob) -> list[str]:
        """Return the ids of a batch's requests; the requests themselves have them, too.

        Raises:
            ArtifactError: both files were removed.
        """
        try:
            if self._ids_file(job).exists():
                return self._ids_file(job).read_text(encoding="utf-8").split()
            with self.requests_file(job).open("rb") as file:
                return [json.loads(line)["custom_id"] for line in file]
        except (OSError, ValueError, KeyError, RecursionError) as error:
            raise ArtifactError(
                f"batch {job.batch_id or job.key}: requests can't be read: {error}; put back a copy of the file, or "
                f"cancel the batches at the provider and remove the folder {self.folder}"
            ) from error

    def requests_file(self, job: BatchJob) -> Path:
        """Return the path of the file that is uploaded."""
        return self.folder / f"{job.key}.jsonl"

    def answer_files(self, job: BatchJob) -> tuple[Path, Path]:
        """Return the paths of the answers and of the errors; either may be missing."""
        return self.folder / f"{job.key}.output.jsonl", self.folder / f"{job.key}.errors.jsonl"

    def prepare(
        self,
        endpoint: int,
        requests: Iterable[tuple[BatchRequest, Expense]],
        limits: BatchLimits,
        place: str | None = None,
    ) -> tuple[BatchJob | None, tuple[BatchRequest, Expense] | None]:
        """Write as many requests as one batch may hold, then the batch into the ledger.

        The order counts: a kill in between leaves files that no ledger names, which the next batch overwrites.

        Args:
            endpoint: the number of the server.
            requests: each with the most that it can cost.
            limits: of this batch.
            place: its folder, where it is to be run from a file.

        Returns:
            The batch, if there was a request, and the first request that found no room in it.
        """
        key = f"{self._token}-{len(self.jobs):05d}"
        job = BatchJob(
            key=key,
            endpoint=endpoint,
            place=place,
            requests=0,
            prompt_tokens=0,
            most_tokens=0,
            most_cost=0,
            prepared_at=0,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        path, ids, size, left = self.requests_file(job), [], 0, None
        with path.open("wb") as file:
            for request, most in requests:
                line = _line(request)
                if not job.requests:
                    job.route, job.samples = request.form
                if job.requests and not _fits(job, size + len(line), request, limits):
                    left = (request, most)
                    break
                file.write(line)
                ids.append(request.id)
                size += len(line)
                job.requests += 1
                job.prompt_tokens += request.prompt_tokens
                job.most_tokens += most.tokens
                job.most_cost += most.cost
        if not job.requests:
            path.unlink()
            return None, left
        sync_file(path)
        write_atomic(self._ids_file(job), "\n".join(ids))
        job.prepared_at = time.time()
        self.jobs.append(job)
        self.save()
        return job, left

    def _notice_removed(self, job: BatchJob) -> None:
        """Notice files that somebody removed: answers are fetched again, requests never sent are written anew."""
        files = zip((job.output_file_id, job.error_file_id), self.answer_files(job), strict=True)
        if job.state is BatchState.PREPARED and job.file_id is None and not self.requests_file(job).exists():
            job.apply(BatchEvent.WITHDRAWN)
        elif job.is_closed and job.state in ANSWERED and any(id_ and not path.exists() for id_, path in files):
            job.apply(BatchEvent.ANSWERS_REMOVED)

    def _ids_file(self, job: BatchJob) -> Path:
        return self.folder / f"{job.key}.ids"


def _written(job: BatchJob) -> dict[str, Any]:
    """Return a batch as it stands in the ledger; chats with one answer as they stood there before there were others."""
    data = job.model_dump(mode="json", by_alias=True)
    return {key: value for key, value in data.items() if key not in LATER or value != LATER[key]}


def _fits(job: BatchJob, size: int, request: BatchRequest, limits: BatchLimits) -> bool:
    return (
        job.form == request.form
        and job.requests < limits.requests
        and size <= limits.bytes
        and (limits.prompt_tokens is None or job.prompt_tokens + request.prompt_tokens <= limits.prompt_tokens)
    )


def _line(request: BatchRequest) -> bytes:
    record = {"custom_id": request.id, "method": "POST", "url": request.form.route, "body": request.body}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
