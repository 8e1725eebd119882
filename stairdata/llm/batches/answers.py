"""The files that a batch came back in: one line of JSON a request, in any order, answers and errors apart.

The servers' lines are read as leniently as live answers. A line that can't be read is nobody's, and so is one of a
request that was not tried: it counts as missing and is submitted again.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openai.types import Completion
from openai.types.chat import ChatCompletion

from stairdata.llm.batches.ledger import CHATS, BatchJob, Ledger, RequestForm
from stairdata.llm.batches.states import BatchState
from stairdata.llm.client import Generation, RequestTokens, believed_usage, read_chat, read_samples
from stairdata.llm.outcomes import (
    FORBIDDEN,
    RETRIED,
    MalformedAnswerError,
    Outcome,
    RequestFailedError,
    has_no_format,
    is_final_for_all,
    outcome_of_status,
)
from stairdata.llm.wire.bounded_http import LISTING, MOST_BYTES
from stairdata.llm.wire.error_bodies import error_in
from stairdata_schemas.errors import ArtifactError
from stairdata_schemas.network.body_limits import BodyLimit, BodyLimitError, BodyMeter

NOT_FOUND = 404
STATUS_DIGITS = 3
LINE = BodyLimit(MOST_BYTES, LISTING.values)
"""The most that the line of an answer may hold; the file as a whole is limited where it is fetched."""


class AnswerPlace(NamedTuple):
    """Where an answer is on disk."""

    path: Path
    begin: int
    """The byte at which its line begins."""


class BatchFailure(NamedTuple):
    """How the tries of a request without an answer ended."""

    outcomes: list[Outcome]
    """Of each try, in order; a batch in which it did not come to its turn was none."""
    detail: str
    """The server's words on the last one."""
    retries: int
    """So many tries are made after the first."""

    @property
    def is_final(self) -> bool:
        """Whether the request is not worth another try, or has had all of them."""
        return self.outcomes[-1] not in RETRIED or len(self.outcomes) > self.retries


class BatchResults:
    """What the closed batches of a ledger have brought.

    Args:
        ledger: says which batches are closed, and where their files are.
        retries: of each endpoint, in the order of their numbers.
    """

    def __init__(self, ledger: Ledger, retries: Sequence[int]) -> None:
        self._ledger = ledger
        self._retries = retries
        self._places: dict[str, AnswerPlace] = {}
        self.failures: dict[str, BatchFailure] = {}
        """By the id of the request; of those that may be tried again, too."""
        self.read()

    def answer(self, id_: str) -> Generation | None:
        """Return the answer to a request, if it is here.

        Raises:
            RequestFailedError: the model refused, or a filter withheld the answer.
        """
        body = self.body(id_)
        return read_answer(body, RequestForm()) if body is not None else None

    def body(self, id_: str) -> Any:
        """Return the body of the answer to a request as the server wrote it; None if it is not here."""
        place = self._places.get(id_)
        if place is None:
            return None
        with place.path.open("rb") as file:
            file.seek(place.begin)
            return _body(_record(file.readline()))

    def is_over(self, id_: str) -> bool:
        """Return whether a request is answered or has failed for good."""
        return id_ in self._places or (id_ in self.failures and self.failures[id_].is_final)

    def read(self) -> None:
        """Read the files of all closed batches again; of an answer only the place is kept in memory."""
        self._places.clear()
        self.failures.clear()
        closed = (job for job in self._ledger.jobs if job.is_closed)
        for job in closed:
            for id_, found in self._found(job).items():
                if isinstance(found, AnswerPlace):
                    self._places.setdefault(id_, found)
                    continue
                earlier = self.failures[id_].outcomes if id_ in self.failures else []
                outcomes = [*earlier, found.outcomes[-1]]
                self.failures[id_] = BatchFailure(outcomes, found.detail, self._retries[job.endpoint])

    def _found(self, job: BatchJob) -> dict[str, AnswerPlace | RequestFailedError]:
        paths = self._ledger.answer_files(job)
        found = find_answers(paths, known_ids(self._ledger, job), job.form)
        is_short = job.state is BatchState.COMPLETED and len(found) < job.requests
        if is_short and shared_refusal(paths) is None:
            # what a completed batch leaves out counts as tried: it would be submitted without end
            left_out = RequestFailedError([Outcome.MALFORMED], "the batch is completed without an answer to it")
            for id_ in self._ledger.ids(job):
                found.setdefault(id_, left_out)
        return found


def known_ids(ledger: Ledger, job: BatchJob) -> Container[str] | None:
    """Return the ids that the lines of a batch may have; None where the files that hold them were removed."""
    try:
        return frozenset(ledger.ids(job))
    except ArtifactError:
        return None


def find_answers(
    paths: Iterable[Path], ids: Container[str] | None = None, form: RequestForm | None = None
) -> dict[str, AnswerPlace | RequestFailedError]:
    """Return where the answer to each request is, or how the request failed; those that were not tried are absent.

    Args:
        paths: the files of a batch.
        ids: of its requests; other lines are nobody's. None: every line is somebody's.
        form: of its requests; default: chats with one answer.
    """
    found: dict[str, AnswerPlace | RequestFailedError] = {}
    for path in paths:
        for begin, record in _records(path):
            id_ = record.get("custom_id")
            status, code, message = _refusal(record)
            # without a status it never came to its turn (expired, cancelled); refused to all, nobody's would have
            if not isinstance(id_, str) or status is None or _is_for_all(status, code, message):
                continue
            if (ids is not None and id_ not in ids) or isinstance(found.get(id_), AnswerPlace):
                continue  # of several lines about one, the first answer counts
            failure = _failure(record, form or RequestForm(), status, code, message)
            found[id_] = failure or AnswerPlace(path, begin)
    return found


def lines_of(path: Path) -> Iterator[str | None]:
    """Yield the id of each line of a file of answers; None for a line that can't be read."""
    for _, record in _records(path):
        id_ = record.get("custom_id")
        yield id_ if isinstance(id_, str) else None


def shared_refusal(paths: Iterable[Path]) -> str | None:
    """Return what the server says where it refuses all requests of a batch alike, not one for what it asks."""
    for path in paths:
        for _, record in _records(path):
            refusal = _refusal(record)
            if _is_for_all(*refusal):
                return refusal[2]
    return None


def tokens_used(
    paths: Iterable[Path], ids: Container[str] | None = None, most: int | None = None
) -> Iterator[RequestTokens | None]:
    """Yield the tokens of each answer, those of refusals included; None for one that can't have taken what it says.

    Args:
        paths: the files of a batch.
        ids: of its requests, as for `find_answers`; of several lines about one, the first counts.
        most: the most tokens that all of its requests can take, where known.
    """
    seen: set[str] = set()
    for path in paths:
        for _, record in _records(path):
            body, id_ = _body(record), record.get("custom_id")
            if not isinstance(body, dict) or body.get("usage") is None:
                continue
            if ids is not None and (not isinstance(id_, str) or id_ not in ids or id_ in seen):
                continue
            seen.add(str(id_) if ids is not None else "")
            try:
                yield believed_usage(_completion(body), RequestTokens(most, most) if most is not None else None)
            except MalformedAnswerError:
                yield None


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield where each line begins, and what it holds; nothing for a file that the batch does not have."""
    if not path.exists():
        return
    begin = 0
    with path.open("rb") as file:
        # a line that goes on beyond the limit is read in pieces, none of which is a record
        while line := file.readline(LINE.bytes):
            yield begin, _record(line)
            begin += len(line)


def _record(line: bytes) -> dict[str, Any]:
    try:
        BodyMeter(LINE).count(line)
        record = json.loads(line)
    except (ValueError, RecursionError, BodyLimitError):
        return {}
    return record if isinstance(record, dict) else {}


def _body(record: dict[str, Any]) -> Any:
    response = record.get("response")
    if not isinstance(response, dict):
        return None
    return response if "choices" in response and "body" not in response else response.get("body")  # not every server


def _failure(
    record: dict[str, Any], form: RequestForm, status: int, code: str | None, message: str
) -> RequestFailedError | None:
    if status != 200:
        return RequestFailedError([outcome_of_status(status, code)], message)
    try:
        read_answer(_body(record), form)
    except MalformedAnswerError as error:
        return RequestFailedError([Outcome.MALFORMED], str(error))
    except RequestFailedError:
        pass  # a refusal is an answer, too: it is read again, and counted, where the turn of its row comes
    return None


def _refusal(record: dict[str, Any]) -> tuple[int | None, str | None, str]:
    """Return status, code and message of an answer; without a status the request was not tried."""
    response = record.get("response")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code"), _body(record)
    if isinstance(status, str) and status.isascii() and status.isdigit() and len(status) == STATUS_DIGITS:
        status = int(status)
    if status is None and isinstance(body, dict) and isinstance(body.get("choices"), list):
        status = 200  # it was answered, and has to be paid, whether the server says so or not
    hidden = error_in(body) if status == 200 else None
    if hidden is not None and hidden.status is not None:
        return hidden
    error = record.get("error") or (body.get("error") if isinstance(body, dict) else None)
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]  # as vLLM's run-batch writes it
    error = error if isinstance(error, dict) else {"message": error}
    code = error.get("code")
    words = str(error.get("message") or code)
    return status if isinstance(status, int) else None, code if isinstance(code, str) else None, words


def _is_for_all(status: int | None, code: str | None, message: str) -> bool:
    # in a batch, nothing but the model or the route can be what is not found
    return (
        is_final_for_all(status, code) or status in {FORBIDDEN, NOT_FOUND} or (status == 400 and has_no_format(message))
    )


def read_answer(
    body: Any, form: RequestForm, most: RequestTokens | None = None, *, is_whole: bool = False
) -> Generation:
    """Read the body of an answer as a live one is read.

    Args:
        body: as the server wrote it.
        form: of the request.
        most: the most tokens that the request can take, where known.
        is_whole: of a chat: leave thoughts in the text where it holds some.

    Raises:
        MalformedAnswerError: it is no answer.
        RequestFailedError: the model refused, or a filter withheld it.
    """
    if not isinstance(body, dict):
        raise MalformedAnswerError("the answer is not a chat completion")
    if form.route == CHATS:
        return read_chat(_completion(body), most, is_whole=is_whole)
    return read_samples(_completion(body), form.samples, most)


def _completion(body: dict[str, Any]) -> ChatCompletion | Completion:
    """Make of a body, unchecked, what the openai package makes of live answers.

    Raises:
        MalformedAnswerError: its keys are none that the package can take.
    """
    try:
        made: ChatCompletion | Completion = (Completion if _has_texts(body) else ChatCompletion).construct(**body)
        return made
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise MalformedAnswerError(f"the answer is not a chat completion: {error}") from error


def _has_texts(body: dict[str, Any]) -> bool:
    """Tell the answer of a completion from that of a chat, whose choices hold messages."""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and "text" in first and "message" not in first
