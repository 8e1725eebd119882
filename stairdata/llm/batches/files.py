"""Batches without a server: files of requests that somebody runs with `vllm run-batch`, and files of its answers.

The form is that of vLLM's `entrypoints/launchers/run_batch.py` (0.32; the command `vllm run-batch`): a line a request
as in OpenAI's batches, of which it answers chats alone, and a line an answer, in the order of the requests, written
when all are answered. What it can't answer has `response.status_code` and the error in `error`: {"error": {...}} where
the model's server refused, or a text; the body is null. So a continuation of a rendered prompt goes as a chat, whose
template lets the prompt through as it is.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stairdata.llm.batches.answers import AnswerPlace, find_answers, lines_of
from stairdata.llm.batches.ledger import CHATS, COMPLETIONS, BatchJob, BatchReport, Ledger
from stairdata.llm.batches.states import BatchState
from stairdata.llm.client import ANSWER_LIMIT
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import InputError, RecipeError, quote
from stairdata_schemas.files import sync_file, write_atomic
from stairdata_schemas.network.body_limits import BodyLimit

SETTLED = 60.0
"""Seconds without a change after which a file of answers that lacks some is taken as it is: it is not being written."""
TEMPLATE = "chat-template.jinja"
AS_IT_IS = "{{ messages[0]['content'] }}"
"""A chat template that adds nothing: the prompt is rendered already."""


class BatchFiles:
    """A folder in which a batch is a file, with the methods of `BatchApi`.

    Args:
        folder: of the requests, and of the answers to them.
        endpoint: the model that is to answer.
        ledger: knows which requests a batch has.
    """

    def __init__(self, folder: Path, endpoint: Endpoint, ledger: Ledger) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._ledger = ledger

    async def upload(self, path: Path) -> str:
        """Write a file of requests in the form that is run, and return its name.

        Raises:
            RecipeError: a prompt that can only be sent as token ids.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"requests-{path.name}"
        target, temporary = self._folder / name, self._folder / f".{name}.tmp"
        with path.open("rb") as requests, temporary.open("w", encoding="utf-8") as file:
            for line in requests:
                record = json.loads(line)
                if record["url"] == COMPLETIONS:
                    record |= {"url": CHATS, "body": self._as_chat(record["body"])}
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
        sync_file(temporary)
        temporary.replace(target)
        return name

    async def create(self, job: BatchJob, ledger: Ledger) -> BatchReport:  # noqa: ARG002 - as of BatchApi
        """Return how the batch of a file stands that was written."""
        if job.route == COMPLETIONS:
            write_atomic(self._folder / TEMPLATE, AS_IT_IS)
        return self._report(job) or BatchReport(str(job.file_id), BatchState.IN_PROGRESS, 0, 0, None, None, "")

    async def retrieve(self, batch_id: str) -> BatchReport | None:
        """Look for answers; who has removed the requests, and no answers are there, has cancelled the batch."""
        report = self._report(next(job for job in self._ledger.jobs if job.batch_id == batch_id))
        return report or BatchReport(batch_id, BatchState.CANCELLED, 0, 0, None, None, "")

    async def look_up(self, job: BatchJob) -> BatchReport | None:
        """Look for a batch that was not confirmed: its file is written again where it is not there."""
        return self._report(job)

    search = look_up

    async def cancel(self, batch_id: str) -> BatchReport:
        """Remove the requests; what is answered can be collected."""
        report = await self.retrieve(batch_id)
        assert report is not None
        (self._folder / batch_id).unlink(missing_ok=True)
        answers = f"answers-{batch_id.removeprefix('requests-')}"
        has_answers = (self._folder / answers).is_file()
        return report._replace(state=BatchState.CANCELLED, output_file_id=answers if has_answers else None)

    async def fetch(self, file_id: str, path: Path, limit: BodyLimit) -> bool:
        """Copy a file of answers, whole or not at all; False if it is no longer there.

        Raises:
            InputError: it is larger than the answers can be.
        """
        source = self._folder / file_id
        if not source.is_file():
            return False
        if source.stat().st_size > limit.bytes:
            raise InputError(
                f"{source} has {source.stat().st_size:,} bytes, and its answers can have {limit.bytes:,} at most; put "
                "the right file there, or remove it"
            )
        temporary = path.with_name(f".{path.name}.tmp")
        shutil.copyfile(source, temporary)
        sync_file(temporary)
        temporary.replace(path)
        return True

    def command(self, job: BatchJob) -> str:
        """Return the command that answers a batch, for any machine with vLLM."""
        endpoint = self._endpoint
        words = ["vllm", "run-batch", "-i", str(self._folder / str(job.batch_id)), "-o", str(self._answers(job))]
        words += ["--model", endpoint.path or endpoint.name, "--generation-config", "vllm"]
        if endpoint.path is not None:
            words += ["--served-model-name", endpoint.name, "--max-model-len", str(endpoint.max_model_len)]
        if job.route == COMPLETIONS:
            words += ["--chat-template", str(self._folder / TEMPLATE)]
        return shlex.join(words)

    def _answers(self, job: BatchJob) -> Path:
        return self._folder / f"answers-{job.key}.jsonl"

    def _report(self, job: BatchJob) -> BatchReport | None:
        """Say how a batch stands, by its files.

        Raises:
            InputError: a file of answers to other requests.
        """
        path, name = self._answers(job), str(job.file_id)
        is_there = path.is_file() and path.stat().st_size > 0
        if not is_there and not (self._folder / name).is_file():
            return None
        report = BatchReport(name, BatchState.IN_PROGRESS, 0, 0, None, None, "")
        if not is_there:
            return report
        ids = frozenset(self._ledger.ids(job))
        lines = Counter(lines_of(path))
        if lines and not ids & lines.keys() and any(lines.keys() - {None}):
            other = next(id_ for id_ in lines if id_ is not None)
            raise InputError(
                f"{path} answers none of the {job.requests} requests of {name} (it answers {quote(other)}, say); put "
                "the right file there, or remove it"
            )
        found = find_answers([path], ids, job.form)
        answered = sum(isinstance(each, AnswerPlace) for each in found.values())
        report = report._replace(
            completed=answered, failed=len(found) - answered, output_file_id=path.name, error=_amiss(lines, ids)
        )
        if ids <= lines.keys():
            return report._replace(state=BatchState.COMPLETED)
        is_settled = time.time() - path.stat().st_mtime > SETTLED
        return report._replace(state=BatchState.EXPIRED) if is_settled else report

    def _as_chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the chat that stands for a continuation."""
        if not isinstance(body["prompt"], str):
            raise RecipeError(
                f"a prompt holds control tokens, and {quote(self._endpoint.name)} could be sent it only as token ids, "
                "which `vllm run-batch` does not take; set control_tokens of the model to neutralise, or ask live"
            )
        renamed = {ANSWER_LIMIT if key == "max_tokens" else key: value for key, value in body.items()}
        prompt = renamed.pop("prompt")
        return renamed | {"messages": [{"role": "user", "content": prompt}]}


def _amiss(lines: Counter[str | None], ids: Iterable[str]) -> str:
    """Say which lines of a file of answers count for nothing."""
    known = frozenset(ids)
    strangers = sum(count for id_, count in lines.items() if id_ is not None and id_ not in known)
    twice = sum(count - 1 for id_, count in lines.items() if id_ in known)
    found = [
        (lines[None], "unreadable"),
        (strangers, "of other requests"),
        (twice, "about a request once more"),
    ]
    said = ", ".join(f"{count} {what}" for count, what in found if count)
    return f"lines left out: {said}" if said else ""
