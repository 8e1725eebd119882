"""Batches without any generator: each state and event, each moment of a kill, and files of earlier versions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stairdata.llm.batches.answers import find_answers, shared_refusal
from stairdata.llm.batches.ledger import BatchLimits, BatchRequest, Ledger
from stairdata.llm.batches.queue import BatchQueue
from stairdata.llm.batches.states import (
    REPORTED,
    BatchEvent,
    BatchStanding,
    BatchState,
    BatchTransitionError,
    is_known,
)
from stairdata.llm.budget import Budget, BudgetLimits, Expense
from stairdata.llm.client import chat_body
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.llm.wire.bounded_http import BoundedHttpClient
from stairdata.recipe import Endpoint, Price
from stairdata_schemas.errors import BudgetError, RecipeError, ServerError
from stairdata_schemas.files import sync_file, write_atomic
from tests.servers.batches import Account, Plan

IDS = tuple("abcde")
EARLIER = Path(__file__).parent / "batches_v1"
"""Batches of two endpoints as they were on disk before there was a queue: one collected, one under way, one whose
confirmation was lost, one whose upload was refused."""

# -- states and events -----------------------------------------------------------------------------------------------

TRANSITIONS = """
                report  forgotten  withdrawn   answers_saved  failure_told  answers_removed
prepared        any     -          cancelled!  -              -             -
validating      any     lost!      -           -              -             -
in_progress     any     lost!      -           -              -             -
finalizing      any     lost!      -           -              -             -
cancelling      any     lost!      -           -              -             -
completed       any     lost!      -           completed!     -             -
expired         any     lost!      -           expired!       -             -
cancelled       any     lost!      -           cancelled!     -             -
failed          -       -          -           -              failed!       -
turned_away     -       -          -           -              -             -
lost            -       -          -           -              -             -
prepared!       -       -          -           -              -             -
validating!     -       -          -           -              -             -
in_progress!    -       -          -           -              -             -
finalizing!     -       -          -           -              -             -
cancelling!     -       -          -           -              -             -
completed!      -       -          -           -              -             completed
expired!        -       -          -           -              -             expired
cancelled!      -       -          -           -              -             cancelled
failed!         -       -          -           -              -             -
turned_away!    -       -          -           -              -             -
lost!           -       -          -           -              -             -
"""
"""How a batch stands and what happens to it, to how it stands then; ! is closed, `any` is what the server says."""


def standing(word: str) -> BatchStanding:
    return BatchStanding(BatchState(word.rstrip("!")), word.endswith("!"))


def transitions() -> Iterator[tuple[BatchStanding, BatchState | BatchEvent, BatchStanding | None]]:
    head, *lines = TRANSITIONS.strip().splitlines()
    for before, report, *cells in map(str.split, lines):
        for state in BatchState:
            says = report == "any" and state not in {"prepared", "lost"}  # which are our words, not a server's
            yield standing(before), state, BatchStanding(state) if says else None
        for event, cell in zip(head.split()[1:], cells, strict=True):
            yield standing(before), BatchEvent(event), None if cell == "-" else standing(cell)


def test_each_event_to_a_batch_in_each_state() -> None:
    seen = set()
    for before, event, after in transitions():
        seen.add((before, event))
        if after is None:
            with pytest.raises(BatchTransitionError):
                before.after(event)
        else:
            assert before.after(event) == after, (before, event)
    assert len(seen) == 2 * len(BatchState) * (len(BatchState) + len(BatchEvent))


@given(st.lists(st.sampled_from([*BatchState, *BatchEvent]), max_size=12))
def test_a_closed_batch_is_opened_by_nothing_but_the_loss_of_its_answers(
    events: list[BatchState | BatchEvent],
) -> None:
    now = BatchStanding(BatchState.PREPARED)
    for event in events:
        before = now
        try:
            now = before.after(event)
        except BatchTransitionError:
            continue
        if now.is_open and not before.is_open:
            assert event is BatchEvent.ANSWERS_REMOVED
            assert before.is_closed
        assert not (now.is_open and now.is_closed)


def test_a_word_of_another_vendor_means_under_way() -> None:
    assert BatchState("queueing") is BatchState.IN_PROGRESS
    assert "queueing" not in REPORTED


# -- a provider in this process, and programs that are killed --------------------------------------------------------


class Killed(BaseException):
    """What SIGKILL is to a program: nothing after it happens."""


class Provider(httpx2.AsyncBaseTransport):
    """An account's Batch API. Before and after each request, and each file written, is a step that may be the last."""

    def __init__(self) -> None:
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/files", self._files, methods=["POST"]),
            Route("/v1/files/{id}/content", self._files),
            Route("/v1/batches", self._batches, methods=["GET", "POST"]),
            Route("/v1/batches/{id}", self._batch),
            Route("/v1/batches/{id}/cancel", self._batch, methods=["POST"]),
        ]
        self._wire = httpx2.ASGITransport(app=Starlette(routes=routes))
        self.reset()

    def reset(self, plan: Plan | None = None) -> None:
        self.account = Account(plan or Plan())
        self.script: dict[str, tuple[int, dict[str, Any]]] = {}
        self.requests: Counter[str] = Counter()
        self.steps_left: int | None = None

    def step(self) -> None:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left == 0:
                raise Killed

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests[f"{request.method} {request.url.path}"] += 1
        self.step()
        response = await self._wire.handle_async_request(request)
        self.step()
        return response

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": ""}]})

    async def _files(self, request: Request) -> Response:
        return await (self.account.upload if request.method == "POST" else self.account.content)(request)

    async def _batches(self, request: Request) -> Response:
        return await (self.account.create if request.method == "POST" else self.account.list)(request)

    async def _batch(self, request: Request) -> Response:
        batch = self.account.batches.get(request.path_params["id"])
        if batch is None:
            return JSONResponse({"error": {"message": "no such batch"}}, 404)
        if request.url.path.endswith("/cancel"):
            batch["status"] = "cancelling"
        else:
            self.account.run(batch, self._answer)
        return JSONResponse(batch)

    def _answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked = body["messages"][0]["content"]
        if asked in self.script:
            return self.script[asked]
        message = {"role": "assistant", "content": f"answer to {asked}"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        return 200, {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 5}}

    def open_batches(self, id_: str) -> int:
        """Count the batches that may still answer a request."""
        count = 0
        for batch in self.account.batches.values():
            if batch["status"] in {"validating", "in_progress", "finalizing", "cancelling"}:
                lines = self.account.files[batch["input_file_id"]][1].splitlines()
                count += id_ in {json.loads(line)["custom_id"] for line in lines}
        return count


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Provider:
    made = Provider()
    monkeypatch.setattr(
        "stairdata.llm.client.BoundedHttpClient", lambda **options: BoundedHttpClient(transport=made, **options)
    )

    def stepping(act: Callable[..., None]) -> Callable[..., None]:
        def stepped(*arguments: Any) -> None:
            made.step()
            act(*arguments)
            made.step()

        return stepped

    monkeypatch.setattr("os.fsync", lambda _: None)  # a kill takes nothing from the page cache, and the disk is slow
    monkeypatch.setattr("stairdata.llm.batches.ledger.write_atomic", stepping(write_atomic))
    monkeypatch.setattr("stairdata.llm.batches.api.sync_file", stepping(sync_file))
    return made


def endpoint(**changes: Any) -> Endpoint:
    return Endpoint(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", "retries": 2, **changes})


TWO_REQUESTS = BatchLimits(2, 10**6, None)


def make_queue(
    folder: Path,
    limits: BatchLimits = TWO_REQUESTS,
    endpoints: Sequence[Endpoint] = (),
    budget: Budget | None = None,
) -> BatchQueue:
    return BatchQueue(folder, endpoints or [endpoint()], limits, "some.batch", budget or Budget())


def request_of(id_: str) -> BatchRequest:
    return BatchRequest(id_, chat_body("m", [{"role": "user", "content": id_}], Endpoint(), max_tokens=20, seed=7), 10)


def missing(queue: BatchQueue, ids: Sequence[str]) -> Iterator[BatchRequest]:
    pending = queue.pending
    return (request_of(id_) for id_ in ids if id_ not in pending and not queue.results.is_over(id_))


def run(queue: BatchQueue, action: str, ids: Sequence[str] = IDS, number: int = 0) -> bool:
    """Do what a program does that is started with one of the four words; says whether all was sent."""

    async def act() -> bool:
        async with queue.connect([number] if action == "submit" else ()):
            await (queue.cancel() if action == "cancel" else queue.refresh())
            if action in {"submit", "collect"}:
                await queue.collect()
            queue.check_failed()
            return action != "submit" or await queue.submit(number, missing(queue, ids))

    return asyncio.run(act())


def answers(queue: BatchQueue, ids: Sequence[str] = IDS) -> dict[str, str]:
    found = {id_: queue.results.answer(id_) for id_ in ids}
    return {id_: generation.samples[0].text for id_, generation in found.items() if generation is not None}


ALL_ANSWERS = {id_: f"answer to {id_}" for id_ in IDS}


def test_submit_refresh_collect(provider: Provider, tmp_path: Path) -> None:
    provider.reset(Plan(ends="in_progress"))
    queue = make_queue(tmp_path)
    assert run(queue, "submit")
    assert [job.requests for job in queue.jobs] == [2, 2, 1]
    assert queue.pending == set(IDS)
    run(queue, "collect")
    assert answers(queue) == {}
    provider.account.plan = Plan()
    run(queue, "refresh")
    assert {job.state for job in queue.jobs} == {"completed"}
    assert answers(queue) == {}
    run(queue, "collect")
    assert answers(queue) == answers(make_queue(tmp_path)) == ALL_ANSWERS
    assert queue.pending == set()
    assert set(provider.account.made.values()) == {1}


@pytest.mark.parametrize("lag", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_kill_at_any_step_submits_nothing_twice_and_loses_nothing(
    lag: int, provider: Provider, tmp_path: Path
) -> None:
    """Every moment of a submission and a collection is the last one of a program, and another one goes on.

    With `lag` the list of batches does not show what was made before it has been read twice.
    """
    for kill_at in range(1, 1000):
        folder = tmp_path / str(kill_at)
        provider.reset(Plan(lag=lag))
        provider.steps_left = kill_at
        for action in ("submit", "collect"):
            try:
                run(make_queue(folder), action)
            except Killed:
                run(make_queue(folder), action)
        assert set(provider.account.made.values()) == {1}, kill_at
        queue = make_queue(folder)
        assert answers(queue) == ALL_ANSWERS, kill_at
        assert sum(job.spent_tokens for job in queue.jobs) == 8 * len(IDS), kill_at
        if provider.steps_left > 0:
            break
    assert 50 < kill_at < 999, "the last one was never killed, and so has gone through all of them"


RUNS = st.tuples(
    st.sampled_from(["submit", "collect", "refresh", "cancel"]),
    st.one_of(st.none(), st.integers(1, 40)),
    st.sampled_from(["completed", "in_progress", "expired", "failed", "queue_full", "something else"]),
    st.sampled_from([0.0, 0.5, 1.0]),
)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(RUNS, max_size=8))
def test_no_order_of_runs_and_kills_asks_for_anything_twice(
    provider: Provider, tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, int | None, str, float]]
) -> None:
    folder = tmp_path_factory.mktemp("batches")
    provider.reset()

    def check(queue: BatchQueue) -> None:
        open_ids = [id_ for job in queue.jobs if job.is_open for id_ in Ledger(folder).ids(job)]
        assert len(open_ids) == len(set(open_ids))
        assert max(map(provider.open_batches, IDS)) <= 1
        assert max(provider.account.answered.values(), default=0) <= 1

    for action, kill_at, ends, share in runs:
        # a completed batch that leaves requests out counts as having tried them, and they are not tried for ever
        provider.account.plan = Plan(ends=ends, share=1.0 if ends == "completed" else share)
        provider.steps_left = kill_at
        with contextlib.suppress(Killed, ServerError):
            run(make_queue(folder), action)
        check(make_queue(folder))
    provider.account.plan, provider.steps_left = Plan(), None
    for _ in range(4):
        with contextlib.suppress(ServerError):  # which tells of a batch that was rejected as a whole, once
            run(make_queue(folder), "submit")
    run(make_queue(folder), "collect")
    check(make_queue(folder))
    assert answers(make_queue(folder)) == ALL_ANSWERS
    assert set(provider.account.answered.values()) == {1}


def test_batches_from_before_are_finished_and_their_files_keep_their_form(provider: Provider, tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    shutil.copytree(EARLIER, folder)
    before = (folder / "ledger.json").read_text()
    ledger = Ledger(folder)
    assert [(job.endpoint, job.state, job.is_closed) for job in ledger.jobs] == [
        (0, "completed", True), (0, "in_progress", False), (1, "prepared", False), (1, "prepared", False),
    ]  # fmt: skip
    ledger.save()
    assert (folder / "ledger.json").read_text() == before
    for number, job in enumerate(ledger.jobs[:3]):  # the account as that version has left it
        lines = ledger.requests_file(job).read_bytes()
        provider.account.files[job.file_id or ""] = (f"{job.key}.jsonl", lines)
        provider.account.batches[f"batch_{number:04d}"] = {
            "id": f"batch_{number:04d}", "object": "batch", "status": "in_progress" if number else "completed",
            "input_file_id": job.file_id, "metadata": {"stairdata_job": job.key}, "created_at": 2_000_000_000,
            "output_file_id": job.output_file_id, "error_file_id": None, "errors": None,
            "request_counts": {"total": job.requests, "completed": job.completed, "failed": 0},
        }  # fmt: skip
        provider.account.made.update(ledger.ids(job))
    provider.account.files["file-0001"] = ("output.jsonl", b"")
    ids, endpoints = "abcdefg", [endpoint(), endpoint(model="m", api_key_env="ANOTHER")]
    run(make_queue(folder, endpoints=endpoints), "submit", ids="abcd", number=0)
    run(make_queue(folder, endpoints=endpoints), "submit", ids="efg", number=1)
    queue = make_queue(folder, endpoints=endpoints)
    run(queue, "collect")
    assert answers(queue, ids).keys() == set(ids)
    assert provider.account.made == Counter(ids)
    assert provider.account.answered == Counter("cdefg"), "a and b were answered before"


# -- what fails, and is told -----------------------------------------------------------------------------------------


def test_a_batch_refused_as_a_whole_is_told_once_whatever_files_it_names(provider: Provider, tmp_path: Path) -> None:
    run(make_queue(tmp_path), "submit", ids="ab")
    provider.account.plan = Plan(ends="failed")
    provider.account.batches["batch_0000"]["error_file_id"] = "file-of-a-refusal"
    with pytest.raises(ServerError, match=r"batch batch_0000 was rejected as a whole: 'invalid_json_line"):
        run(make_queue(tmp_path), "refresh")
    run(make_queue(tmp_path), "refresh")
    assert make_queue(tmp_path).pending == set()
    provider.account.plan = Plan()
    run(make_queue(tmp_path), "submit", ids="ab")
    queue = make_queue(tmp_path)
    run(queue, "collect")
    assert answers(queue, "ab").keys() == {"a", "b"}


def test_what_fails_is_tried_as_often_as_the_endpoint_says(provider: Provider, tmp_path: Path) -> None:
    provider.script["a"] = (500, {"error": {"message": "not today"}})
    provider.script["b"] = (400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    for _ in range(9):
        run(make_queue(tmp_path), "submit")
    queue = make_queue(tmp_path)
    run(queue, "collect")
    failure = queue.results.failures["a"]
    assert (failure.outcomes, failure.detail) == ([Outcome.SERVER_ERROR] * 3, "not today")
    assert queue.results.failures["b"].outcomes == [Outcome.INVALID_REQUEST]
    assert all(queue.results.is_over(id_) for id_ in IDS)
    assert provider.account.made == Counter(a=3, b=1, c=1, d=1, e=1)
    assert answers(queue).keys() == set("cde")


def test_a_refusal_is_an_answer_that_is_refused_when_it_is_read(provider: Provider, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    provider.script["a"] = (200, {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]})
    queue = make_queue(tmp_path)
    run(queue, "submit", ids="a")
    run(queue, "collect")
    assert queue.results.is_over("a")
    with pytest.raises(RequestFailedError, match="refusal: No"):
        queue.results.answer("a")


def test_lines_that_are_no_answers(tmp_path: Path) -> None:
    lines = [
        "{",
        "[]",
        json.dumps({"custom_id": 7, "response": {"status_code": 200}}),
        json.dumps({"custom_id": "expired", "response": None, "error": {"code": "batch_expired", "message": "late"}}),
        json.dumps({"custom_id": "empty", "response": {"status_code": 200, "body": None}}),
        json.dumps({"custom_id": "slow", "response": {"status_code": 429, "body": {"error": "slow down"}}}),
    ]
    path = tmp_path / "errors.jsonl"
    path.write_text("\n".join(lines))
    found = {id_: str(failure) for id_, failure in find_answers([tmp_path / "none", path]).items()}
    assert found == {"empty": "malformed: the answer is not a chat completion", "slow": "rate_limited: slow down"}
    assert shared_refusal([path]) is None


def test_what_a_key_is_refused_counts_as_not_tried(provider: Provider, tmp_path: Path) -> None:
    provider.script = {id_: (401, {"error": {"message": "wrong key"}}) for id_ in "ab"}
    queue = make_queue(tmp_path)
    run(queue, "submit", ids="ab")

    async def collect() -> list[str]:
        async with queue.connect():
            await queue.refresh()
            return await queue.collect()

    assert asyncio.run(collect()) == ["wrong key"]
    assert not any(map(queue.results.is_over, "ab"))
    assert queue.results.failures == {}
    assert queue.pending == set()


def test_what_was_never_sent_can_be_withdrawn_and_what_was_sent_not(provider: Provider, tmp_path: Path) -> None:
    provider.reset(Plan(ends="in_progress"))
    run(make_queue(tmp_path), "submit", ids="ab")
    provider.steps_left = 4 + 2 * 4  # the models, the first batch's state, and the files of the second batch
    with pytest.raises(Killed):
        run(make_queue(tmp_path), "submit", ids="abcd")
    queue = make_queue(tmp_path)
    assert queue.pending == set("abcd")
    queue.withdraw_unsent()
    assert queue.pending == set("ab")
    assert queue.jobs[1].batch_id is None


def test_cancelling_asks_the_server_only_of_what_it_has(provider: Provider, tmp_path: Path) -> None:
    provider.reset(Plan(ends="in_progress", share=0.5))
    queue = make_queue(tmp_path)
    run(queue, "submit", ids="ab")
    run(queue, "cancel")
    assert queue.jobs[0].state == "cancelling"
    run(queue, "collect")
    assert queue.jobs[0].state == "cancelled"
    assert len(answers(queue, "ab")) == 1
    assert queue.pending == set()
    run(queue, "cancel")
    assert provider.requests["POST /v1/batches/batch_0000/cancel"] == 1


# -- room and money --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (BatchLimits(5, 10**6, None), [5]),
        (BatchLimits(3, 10**6, None), [3, 2]),
        (BatchLimits(5, 400, None), [2, 2, 1]),
        (BatchLimits(5, 1, None), [1, 1, 1, 1, 1]),
    ],
)
def test_batches_are_split(limits: BatchLimits, sizes: list[int], provider: Provider, tmp_path: Path) -> None:
    queue = make_queue(tmp_path, limits)
    assert run(queue, "submit")
    assert [job.requests for job in queue.jobs] == sizes
    assert all(
        queue._ledger.requests_file(job).stat().st_size <= limits.bytes for job in queue.jobs if limits.bytes > 1
    )


def test_endpoints_of_one_account_share_its_queue(provider: Provider, tmp_path: Path) -> None:
    provider.reset(Plan(ends="in_progress"))
    endpoints = [endpoint(), endpoint(timeout=9), endpoint(api_key_env="ANOTHER")]
    queue = make_queue(tmp_path, BatchLimits(2, 10**6, 35), endpoints)
    assert not run(queue, "submit", number=0), "three requests of 10 tokens fill the queue"
    assert not run(queue, "submit", ids="xy", number=1)
    assert run(queue, "submit", ids="uvw", number=2)
    assert [(job.endpoint, job.requests) for job in queue.jobs] == [(0, 2), (0, 1), (2, 2), (2, 1)]
    with pytest.raises(RecipeError, match=r"one request of 10 prompt tokens is more than some.batch.max_enqueued_tok"):
        run(make_queue(tmp_path / "other", BatchLimits(2, 10**6, 9)), "submit")


def test_a_limit_on_tokens_holds_whatever_the_answers_take(provider: Provider, tmp_path: Path) -> None:
    provider.reset(Plan(ends="in_progress"))
    budget = Budget(BudgetLimits(total_tokens=200), prices={"m": Price(input=1e6, output=1e6)})
    queue = make_queue(tmp_path, budget=budget)
    with pytest.raises(BudgetError, match="more than --max-total-tokens 200; 2 requests are submitted"):
        run(queue, "submit")
    most = budget.elsewhere
    assert 100 < most.tokens <= 200
    assert most.cost == most.tokens / 2, "a batch costs half"
    provider.account.plan = Plan()
    run(queue, "collect")
    assert budget.elsewhere == Expense(16, 8.0)
    again = Budget()
    make_queue(tmp_path, budget=again)
    assert again.elsewhere.tokens == 16, "the next run counts what earlier ones have spent"


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("COMPLETED", "completed"), ("succeeded", "completed"), ("Canceled", "cancelled"), ("timed-out", "expired"),
        ("queued", "validating"), ("running", "in_progress"), ("error", "failed"), ("archived", "in_progress"),
    ],
)  # fmt: skip
def test_words_for_states(word: str, state: str) -> None:
    assert BatchState(word) == state
    assert is_known(word) == (word != "archived")
