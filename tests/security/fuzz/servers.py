"""Answers of model servers, as the openai package and our readers take them; no socket is opened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx2
from hypothesis import strategies as st

from stairdata.llm.batches.answers import BatchResults, shared_refusal, tokens_used
from stairdata.llm.batches.api import BatchApi
from stairdata.llm.batches.ledger import BatchJob, BatchLimits, BatchReport, BatchRequest, Ledger
from stairdata.llm.batches.states import BatchEvent, BatchState
from stairdata.llm.budget import Budget, Expense
from stairdata.llm.client import Client, Tally
from stairdata.llm.outcomes import RequestFailedError
from stairdata.llm.window import Window
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import StairDataError
from stairdata_schemas.network.body_limits import BodyLimit
from tests.security.fuzz.damage import damaged, documents
from tests.servers.hostile_llm import chat_answer

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
TOP = [{"token": "a", "logprob": -0.5, "bytes": [97]}]
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": TOP}], "refusal": None}
ERROR = {"message": "no", "type": "invalid_request_error", "param": None, "code": "insufficient_quota", "status": 429}
MESSAGE: dict[str, Any] = {"role": "assistant", "content": "A pot of water.", "refusal": None, "tool_calls": []}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": LOGPROBS}
CHAT = chat_answer(choices=[CHOICE], usage=USAGE)
TEXT_LOGPROBS = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5}], "text_offset": [0]}
COMPLETION = {
    "id": "1",
    "object": "text_completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "text": "a", "finish_reason": "stop", "logprobs": TEXT_LOGPROBS} for _ in range(2)],
    "usage": USAGE,
}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}] * 2}
BATCH = {
    "id": "batch-1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": {"object": "list", "data": [{"code": "a", "message": "b", "line": 1, "param": None}]},
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "completed",
    "output_file_id": "file-2",
    "error_file_id": "file-3",
    "created_at": 0,
    "request_counts": {"total": 2, "completed": 1, "failed": 1},
    "metadata": {"stairdata": "k"},
}
BATCHES = {"object": "list", "data": [BATCH], "first_id": "batch-1", "last_id": "batch-1", "has_more": False}
LINES = [
    {"id": "r1", "custom_id": "a", "response": {"status_code": 200, "request_id": "q", "body": CHAT}, "error": None},
    {"id": "r2", "custom_id": "b", "response": {"status_code": 400, "body": {"error": ERROR}}, "error": None},
    {"id": "r3", "custom_id": "c", "response": None, "error": {"code": "batch_expired", "message": "late"}},
]
STATUSES = (200, 200, 200, 200, 204, 299, 300, 307, 400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503, 529, 999)
KINDS = ("application/json", "text/plain", "text/event-stream", "application/json; charset=utf-7", "x", "\x85", "")
HEADERS: tuple[dict[str, str], ...] = (
    {}, {"retry-after": "1e308"}, {"retry-after": "-1"}, {"retry-after": "9" * 400}, {"retry-after-ms": "nan"},
    {"retry-after": "Fri, 31 Dec 999999 23:59:59 GMT"}, {"x-should-retry": "true"}, {"location": "\x1b[2J"},
    {"content-encoding": "gzip"}, {"content-encoding": "br, zstd"}, {"content-length": "9" * 30}, {"set-cookie": "a=b"},
)  # fmt: skip


def _packed(head: dict[str, Any], body: bytes) -> bytes:
    return json.dumps(head).encode() + b"\n" + body


def answers(body: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Make answers: a line that says status, content type and headers, then the body."""
    heads = st.fixed_dictionaries(
        {"status": st.sampled_from(STATUSES), "kind": st.sampled_from(KINDS), "headers": st.sampled_from(HEADERS)}
    )
    plain = st.just({"status": 200, "kind": "application/json", "headers": {}})
    bodies = documents(st.sampled_from([body, body, body, body, {"error": ERROR}, ERROR, {"errors": [ERROR]}]))
    return st.builds(_packed, plain | heads, damaged(bodies))


def _response(data: bytes) -> httpx2.Response:
    first, _, body = data.partition(b"\n")
    head = json.loads(first)
    kind = {"content-type": head["kind"].encode("latin-1")} if head["kind"] else {}
    headers = {**kind, **{name: value.encode("latin-1") for name, value in head["headers"].items()}}
    return httpx2.Response(head["status"], headers=headers, stream=httpx2.ByteStream(body))


def _ask(data: bytes, work: Callable[[Client], Awaitable[Any]]) -> Any:
    """Send requests of which each is answered with the same bytes."""

    async def inside() -> Any:
        client = copy(_client())
        client.window, client.budget, client.tally = Window(), Budget(), Tally()
        client.openai._client._transport = httpx2.MockTransport(lambda _: _response(data))
        try:
            return await work(client)
        except RequestFailedError as error:
            str(error)
            return None

    return _runner().run(inside())


@cache
def _client() -> Client:
    """Make a client that was not used yet, to be copied: another one takes 40 ms."""
    return Client(Endpoint(retries=0, timeout=20, retry_seconds=1), "http://127.0.0.1:1/v1", "m", "key")


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def read_any_chat(data: bytes, folder: Path) -> None:
    """Ask a chat model, without and with log-probabilities."""
    _ask(data, lambda client: client.chat([{"role": "user", "content": "Rate."}], max_tokens=50, seed=7))


def read_any_completion(data: bytes, folder: Path) -> None:
    """Ask for two continuations of a prompt."""
    _ask(data, lambda client: client.complete("Why?", n=2, max_tokens=50, seed=7, logprobs=1))


def read_any_models(data: bytes, folder: Path) -> None:
    """List a server's models."""
    _ask(data, lambda client: client.models())


def _ledger(folder: Path) -> tuple[Ledger, BatchJob]:
    """Make a ledger with one batch of three requests, which was sent."""
    ledger = Ledger(folder)
    requests = [(BatchRequest(id_, {"model": "m", "messages": []}, 9), Expense(99, 0.0)) for id_ in "abc"]
    job, _ = ledger.prepare(0, iter(requests), BatchLimits(10, 10**6, None))
    assert job is not None
    job.prepared_at = 0.0
    job.apply(BatchState.VALIDATING)
    return ledger, job


async def _through(ask: Callable[[BatchApi], Awaitable[BatchReport | None]], client: Client) -> BatchReport | None:
    return await ask(BatchApi(client))


def read_any_batch(data: bytes, folder: Path) -> None:
    """Ask how a batch stands, look for it in the list, cancel it; and note what the server says."""
    ledger, job = _ledger(folder)
    questions: list[Callable[[BatchApi], Awaitable[BatchReport | None]]] = [
        lambda api: api.retrieve("batch-1"),
        lambda api: api.look_up(job),
        lambda api: api.cancel("batch-1"),
    ]
    for ask in questions:
        with suppress(StairDataError):
            report = _ask(data, partial(_through, ask))
            if report is not None:
                ledger.note(job.model_copy(), report)


def read_any_batch_file(data: bytes, folder: Path) -> None:
    """Fetch a file of a batch's answers, and read it as a build does."""
    ledger, job = _ledger(folder)
    job.apply(BatchState.COMPLETED)
    path = ledger.answer_files(job)[0]
    if not _ask(data, lambda client: BatchApi(client).fetch("file-2", path, BodyLimit(2**22, None))):
        return
    shared_refusal([path])
    list(tokens_used([path], {"a", "b"}, 1000))
    job.apply(BatchEvent.ANSWERS_SAVED)
    results = BatchResults(ledger, [3])
    for id_ in "abc":
        with suppress(RequestFailedError):
            results.answer(id_)


def _lines(records: list[bytes]) -> bytes:
    return b"\n".join(record.replace(b"\n", b" ") for record in records)


_HEAD = {"status": 200, "kind": "application/jsonl", "headers": {}}
_LINES = st.lists(damaged(documents(st.sampled_from(LINES))), max_size=4).map(_lines)
BATCH_FILES = st.builds(_packed, st.just(_HEAD), damaged(_LINES))
