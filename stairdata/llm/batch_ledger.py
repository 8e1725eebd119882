"""The batches of a build on disk: what is asked is written down before it is sent, what is answered is found again."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from stairdata.llm.budget import Spent
from stairdata.llm.client import Generation, read_chat, whole_number
from stairdata.llm.outcomes import (
    MalformedAnswerError,
    Outcome,
    RequestFailedError,
    has_no_format,
    outcome_of_status,
)
from stairdata_schemas.errors import ArtifactError
from stairdata_schemas.files import sync_file, write_atomic

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
LEDGER = "ledger.json"
PREPARED = "prepared"
LOST = "lost"
TURNED_AWAY = "turned_away"
ENDED = {"completed", "failed", "expired", "cancelled"}


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
    asked_at: float = 0.0
    """When the server was last asked to make it; it may have done so without an answer."""
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
                f"batches at the provider and remove the folder {folder}"
            ) from error
        for job in self.jobs:
            self._mend(job)

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

    def enqueued(self, teachers: Container[int]) -> int:
        """Return the prompt tokens of some teachers' batches under way."""
        jobs = (job for job in self.jobs if job.teacher in teachers and not job.is_collected)
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
            for id_, answer in self._read(job).items():
                if isinstance(answer, Answer):
                    answers.setdefault(id_, answer)
                else:
                    failures.setdefault(id_, []).append(answer.outcomes[-1])
                    details[id_] = answer.detail
        return answers, failures, details

    def _read(self, job: Job) -> dict[str, Answer | RequestFailedError]:
        """Read how each request of a job ended, where it came to its turn."""
        found: dict[str, Answer | RequestFailedError] = {}
        for path in self.answer_files(job):
            for begin, line in _lines(path):
                id_, failure = _read_line(line)
                if id_ is not None:
                    found[id_] = failure or Answer(path, begin)
        if job.status == "completed" and len(found) < job.requests and self.blocker(job) is None:
            left_out = RequestFailedError([Outcome.MALFORMED], "the batch is completed and does not answer it")
            for id_ in self._ids(job):
                found.setdefault(id_, left_out)  # else it would be submitted without end
        return found

    def _mend(self, job: Job) -> None:
        """Notice files that somebody removed: answers are fetched again, requests never sent are written anew."""
        files = zip((job.output_file_id, job.error_file_id), self.answer_files(job), strict=True)
        if job.file_id is None and not self.requests_file(job).exists():
            job.status, job.is_collected = "cancelled", True
        elif job.status != LOST and any(file_id is not None and not path.exists() for file_id, path in files):
            job.is_collected = False

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
        """Return the ids of a job's requests; the requests themselves have them, too."""
        try:
            if self._ids_file(job).exists():
                return self._ids_file(job).read_text(encoding="utf-8").split()
            with self.requests_file(job).open("rb") as file:
                return [json.loads(line)["custom_id"] for line in file]
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"what batch {job.batch_id or job.key} asked can't be told: {error}; put back a copy of the file, or "
                f"cancel the batches at the provider and remove the folder {self.folder}"
            ) from error

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
