"""Requests to a server that may be anybody's: how long they wait, how much they read, and what they believe."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.llm.batches.answers import find_answers, tokens_used
from stairdata.llm.batches.api import BatchApi
from stairdata.llm.budget import Budget, BudgetLimits
from stairdata.llm.client import Client, Generation
from stairdata.llm.outcomes import Outcome, RequestFailedError
from stairdata.llm.vllm_server import _get
from stairdata.llm.wire.bounded_http import LARGE, MOST_BYTES, BoundedHttpClient, limit_for
from stairdata.llm.wire.json_requests import JsonRequests
from stairdata.recipe import Endpoint
from stairdata_schemas.errors import ServerError
from stairdata_schemas.network.body_limits import BodyLimit
from tests.servers.hostile_llm import Attack, HostileServer, Sent, chat_answer, forever, reply, sends, streams

HEAD = "HTTP/1.1 200 OK\nContent-Type: application/json\n\n"
SECONDS = 0.3
NAMES = [
    "choices", "usage", "error", "errors", "message", "code", "status", "detail", "content", "refusal", "logprobs",
    "token", "logprob", "top_logprobs", "finish_reason", "index", "prompt_tokens", "completion_tokens", "id", "object",
    # what objects of pydantic call their own
    "_fields_set", "self", "model_config", "model_fields", "copy", "__class__", "__dict__",
]  # fmt: skip


def ask(server: HostileServer, budget: Budget | None = None, **endpoint: Any) -> Generation:
    """Send one chat request, once."""

    async def send(client: Client) -> Generation:
        return await client.chat([{"role": "user", "content": "Rate."}], max_tokens=50, seed=7)

    generation: Generation = run(server, send, budget, **endpoint)
    return generation


def run(
    server: HostileServer, work: Callable[[Client], Awaitable[Any]], budget: Budget | None = None, **endpoint: Any
) -> Any:
    async def inside() -> Any:
        client = Client(Endpoint(**{"retries": 0, **endpoint}), server.base_url, "m", "key", budget=budget)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(inside())


# -- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_may_be_compressed() -> None:
    body = gzip.compress(json.dumps(chat_answer()).encode())
    with HostileServer(sends(body, "Content-Encoding: gzip")) as server:
        assert "pot of water" in ask(server).samples[0].text


@pytest.mark.parametrize(
    "attack",
    [
        streams(HEAD, forever(b" "), pause=0.05),
        streams("HTTP/1.1 200 OK\nX: ", forever(b"a"), pause=0.05),
        streams("", forever(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50)),
    ],
    ids=["a body that drips", "a header that drips", "endless replies with 103"],
)
def test_a_request_ends_with_its_timeout(attack: Attack) -> None:
    began = time.monotonic()
    with HostileServer(attack) as server, pytest.raises(RequestFailedError) as caught:
        ask(server, timeout=SECONDS)
    assert caught.value.outcomes == [Outcome.TIMEOUT]
    assert SECONDS <= time.monotonic() - began < 30


def test_more_than_was_asked_for_is_not_read_and_is_paid_for() -> None:
    budget = Budget(BudgetLimits(total_tokens=10_000))
    with HostileServer(streams(HEAD, forever(b"[" * 999))) as server, pytest.raises(RequestFailedError) as caught:
        ask(server, budget)
    assert caught.value.outcomes == [Outcome.MALFORMED]
    assert "too many for what was asked" in caught.value.detail
    assert budget.spent.tokens == len("Rate.") + 64 + 50


def test_completions_are_bounded_likewise() -> None:
    budget = Budget(BudgetLimits(total_tokens=10_000))

    async def send(client: Client) -> Generation:
        return await client.complete("Why?", n=3, max_tokens=50, seed=7, logprobs=1)

    attack = streams(HEAD, forever(b'"' + b"a" * 9999))
    with HostileServer(attack) as server, pytest.raises(RequestFailedError) as caught:
        run(server, send, budget)
    limit = limit_for(samples=3, max_tokens=50, logprobs=1)
    sent = len(server.requests[-1].body)
    assert (caught.value.outcomes, budget.spent.tokens) == ([Outcome.MALFORMED], len("Why?") + 3 * 50)
    assert f"more than {limit.bytes + 2 * sent:,} bytes" in caught.value.detail


def test_what_may_be_read_grows_with_what_is_asked() -> None:
    small = limit_for(samples=1, max_tokens=100)
    for more in (
        limit_for(samples=9, max_tokens=100),
        limit_for(samples=1, max_tokens=900),
        limit_for(samples=1, max_tokens=100, logprobs=0),
        limit_for(samples=1, max_tokens=100, logprobs=20),
    ):
        assert more.bytes > small.bytes
    assert limit_for(samples=9, max_tokens=100, logprobs=1).values > limit_for(samples=9, max_tokens=100).values  # type: ignore[operator]
    assert limit_for(samples=999, max_tokens=10**9, logprobs=20).bytes == MOST_BYTES


@pytest.mark.parametrize("escaped", [True, False])
def test_the_longest_honest_answer_is_read(escaped: bool) -> None:
    """A model that repeats one of the longest tokens there are, and the log-probabilities of 20 others each time."""
    token, count = "─" * 64, 200
    content = [{**probable(token), "top_logprobs": [probable(" the")] * 20}] * count
    choice = chat_answer()["choices"][0] | {"logprobs": {"content": content}}
    choice["message"] = {"role": "assistant", "content": token * count}
    body = json.dumps(chat_answer(choices=[choice]), ensure_ascii=escaped).encode()

    async def send(client: Client) -> Generation:
        message: Any = [{"role": "user", "content": "Rate."}]
        return await client.chat(message, max_tokens=count, seed=7, logprobs=True, top_logprobs=20)

    with HostileServer(sends(body)) as server:
        assert len(run(server, send).samples[0].logprobs) == count


def probable(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -1.5, "bytes": list(token.encode())}


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent", "300 Choose"]
)
def test_no_redirect_is_followed(status: str) -> None:
    with HostileServer(sends(chat_answer())) as trap:
        attack = sends(b"", f"Location: {trap.base_url}/chat/completions", status=status)
        with HostileServer(attack) as server, pytest.raises(ServerError) as caught:
            ask(server)
        assert trap.requests == []
        assert f"redirects to '{trap.base_url}/chat/completions'" in str(caught.value)
        assert "write it as base_url" in str(caught.value)


def test_cookies_are_not_kept() -> None:
    heads: list[bytes] = []

    def attack(connection: socket.socket, _: Sent) -> None:
        reply(connection, json.dumps(chat_answer()).encode(), f"Set-Cookie: c{len(heads)}={'x' * 999}; Path=/")

    async def twice(client: Client) -> int:
        for _ in range(2):
            await client.chat([{"role": "user", "content": "Rate."}], max_tokens=50, seed=7)
        return len(client.openai._client.cookies.jar)

    with HostileServer(attack) as server:
        assert run(server, twice) == 0


def test_large_answers_are_read_one_at_a_time() -> None:
    """Each may take up what it was asked for, but not hundreds at once."""
    under_way, most = 0, 0

    class Large(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal under_way, most
            yield b"x" * (LARGE + 1)
            under_way += 1
            most = max(most, under_way)
            for _ in range(20):
                await asyncio.sleep(0)
            under_way -= 1
            yield b"x"

    async def several() -> list[httpx2.Response]:
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, stream=Large()))
        async with BoundedHttpClient(transport=transport) as client:
            return list(await asyncio.gather(*(client.get("http://a/") for _ in range(9))))

    assert [len(answer.content) for answer in asyncio.run(several())] == [LARGE + 2] * 9
    assert most == 1


JUNK = st.recursive(
    st.sampled_from([None, True, -1, 0, 10**400, 1e308, float("nan"), "", "a", "9" * 5000, "\ud83d", "\x1b[2J"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def ask_for() -> Iterator[Callable[[str], Generation]]:
    """Send a request whose answer is the JSON given."""
    answers: list[str] = []
    head = {"content-type": "application/json"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, text=answers.pop(), headers=head))
    client = Client(Endpoint(retries=0), "http://127.0.0.1:1/v1", "m", "key")
    client._json = JsonRequests(client.openai, BoundedHttpClient(transport=transport), 60.0)
    with asyncio.Runner() as runner:

        def ask(text: str) -> Generation:
            answers.append(text)
            return runner.run(client.chat([{"role": "user", "content": "Rate."}], max_tokens=50, seed=7))

        yield ask
        runner.run(client.close())


@given(
    st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=3), JUNK, st.sampled_from(["", "choice", "message", "all"])
)
@settings(max_examples=100)
def test_whatever_json_a_server_sends_the_request_ends_in_an_outcome(
    ask_for: Callable[[str], Generation], changes: Any, junk: Any, place: str
) -> None:
    body: Any = chat_answer(**changes)
    if place == "choice":
        body["choices"] = [chat_answer()["choices"][0] | changes]
    elif place == "message":
        body["choices"] = [chat_answer()["choices"][0] | {"message": changes, "logprobs": junk}]
    with contextlib.suppress(RequestFailedError, ServerError):
        generation = ask_for(json.dumps(junk if place == "all" else body))
        assert 0 <= generation.prompt_tokens + generation.completion_tokens <= 10_000


# -- what answers say they took --------------------------------------------------------------------------------------

NONSENSE: list[Any] = [
    {"prompt_tokens": -5, "completion_tokens": 3},
    {"prompt_tokens": 5, "completion_tokens": -3},
    {"prompt_tokens": "many", "completion_tokens": "more"},
    {"prompt_tokens": float("nan"), "completion_tokens": 3},
    {"prompt_tokens": float("inf"), "completion_tokens": 3},
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": 9, "completion_tokens": 0},
    {"prompt_tokens": True, "completion_tokens": True},
    {"prompt_tokens": 10**30, "completion_tokens": 3},
    {"prompt_tokens": 9, "completion_tokens": 10**9},
    {"prompt_tokens": [], "completion_tokens": {}},
    {"prompt_tokens": None, "completion_tokens": None},
    {"prompt_tokens": 9.5, "completion_tokens": 3},
    {},
    [],
    "a lot",
    7,
]


@pytest.mark.parametrize("usage", NONSENSE, ids=str)
def test_usage_that_can_not_be_is_charged_as_the_most_there_can_be(usage: Any) -> None:
    budget = Budget(BudgetLimits(total_tokens=10_000))
    with HostileServer(sends(chat_answer(usage=usage))) as server:
        generation = ask(server, budget)
    assert generation.outcomes == (Outcome.UNBELIEVABLE_USAGE,)
    assert (generation.prompt_tokens, generation.completion_tokens) == (len("Rate.") + 64, 50)
    assert budget.spent.tokens == len("Rate.") + 64 + 50


@pytest.mark.parametrize(
    ("read", "written"),
    [(9, 50), (1, 1), (400, 50), (9, 300)],
    ids=["sound", "least", "a long template", "a server that overlooks max_tokens"],
)
def test_usage_that_can_be_is_charged(read: int, written: int) -> None:
    budget = Budget(BudgetLimits(total_tokens=10_000))
    with HostileServer(sends(chat_answer(usage={"prompt_tokens": read, "completion_tokens": written}))) as server:
        generation = ask(server, budget)
    assert generation.outcomes == (Outcome.OK,)
    assert (generation.prompt_tokens, generation.completion_tokens) == (read, written)
    assert budget.spent.tokens == read + written


# -- batches ---------------------------------------------------------------------------------------------------------


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def line(id_: str, **changes: Any) -> dict[str, Any]:
    return {"custom_id": id_, "response": {"status_code": 200, "body": chat_answer(**changes)}}


def fetch(attack: Attack, path: Path, size: int, **endpoint: Any) -> bool:
    async def work(client: Client) -> bool:
        return await BatchApi(client).fetch("file-1", path, BodyLimit(size, None))

    with HostileServer(attack, is_everywhere=True) as server:
        return bool(run(server, work, **endpoint))


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (streams(HEAD, forever(b"x" * 9999)), "malformed: 'the answer has more than 100,000 bytes"),
        (sends(b"x" * 999, "Content-Encoding: gzip"), "malformed"),
        (streams(HEAD, forever(b" "), pause=0.05), "timeout"),
        (streams("HTTP/1.1 500 No\n\n", forever(b" "), pause=0.05), "timeout"),
        (streams("HTTP/1.1 500 No\n\n", forever(b"x" * 9999)), "malformed"),
        (streams("HTTP/1.1 200 OK\nContent-Length: 9\n\n", lambda: iter(())), "connection"),
        (sends(b"", "Location: http://127.0.0.1:1/", status="302 Found"), "redirects"),
    ],
    ids=["endless", "no gzip", "drips", "an error that drips", "an endless error", "cut", "elsewhere"],
)
def test_a_file_of_answers_is_bounded(attack: Attack, says: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="nothing is lost") as caught:
        fetch(attack, tmp_path / "answers.jsonl", 100_000, timeout=SECONDS)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_comes_slowly_has_more_time(tmp_path: Path) -> None:
    """It is not one answer: a gigabyte takes longer than `timeout` on most lines."""

    def pieces() -> Iterator[bytes]:
        for _ in range(12):
            yield b"x" * 65_536  # as much as is expected in a second

    attack = streams("HTTP/1.1 200 OK\nContent-Type: text/plain\nConnection: close\n\n", pieces, pause=0.1)
    assert fetch(attack, tmp_path / "answers.jsonl", 10**9, timeout=SECONDS)
    assert (tmp_path / "answers.jsonl").stat().st_size == 12 * 65_536


def test_lines_of_a_batch_that_are_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    sound = lines(line("a"), *(line(f"stranger-{number}") for number in range(99)), line("b"))
    deep = b'{"custom_id": "c", "response": ' + b"[" * 100_000 + b"\n"
    wide = b'{"custom_id": "c", "response": [' + b"{}," * 300_000 + b"1]}\n"
    digits = lines({"custom_id": "c", "response": {"status_code": 200, "body": {"error": {"code": "9" * 5000}}}})
    path.write_bytes(sound + deep + wide + digits + b'{"custom_id": ' + b"9" * 10_000 + b"}\n")
    found = find_answers([path], frozenset("abc"))
    assert sorted(found) == ["a", "b", "c"]
    assert isinstance(found["c"], RequestFailedError)


def test_tokens_of_a_batch_that_can_not_be(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        lines(
            line("a"),
            *(line("b", usage=usage) for usage in NONSENSE[:1]),
            *(line("b", usage=chat_answer()["usage"]) for _ in range(9)),
            line("c", usage={"prompt_tokens": 10**9, "completion_tokens": 1}),
            line("d", _fields_set=5),
            line("stranger"),
        )
    )
    assert list(tokens_used([path], frozenset("abcd"), 1000)) == [(20, 30), None, None, None]


@pytest.mark.parametrize(
    "said",
    [
        {"id": 5},
        {"id": "a\u001b[2J"},
        {"id": "a" * 9999},
        {"id": "a", "output_file_id": {}},
        {"id": "a", "errors": 7, "status": "failed"},
        {"id": "a", "errors": {"data": [5]}, "status": "failed"},
        {"id": "a", "_fields_set": 5},
        [],
        "a",
    ],
    ids=lambda said: str(said)[:40],
)
def test_what_is_no_batch_is_told(said: Any) -> None:
    body = said if isinstance(said, dict) else {"data": said}
    attack = sends(json.dumps(body).encode() if isinstance(said, dict) else json.dumps(said).encode())

    async def work(client: Client) -> Any:
        return await BatchApi(client).retrieve("batch-1")

    with HostileServer(attack, is_everywhere=True) as server, pytest.raises(ServerError, match="the Batch API at"):
        run(server, work)


def test_counts_of_a_batch_that_can_not_be() -> None:
    body = {"id": "a", "status": ["no"], "request_counts": {"completed": 10**4000, "failed": -1}}

    async def work(client: Client) -> Any:
        return await BatchApi(client).retrieve("batch-1")

    with HostileServer(sends(body), is_everywhere=True) as server:
        report = run(server, work)
    assert (report.completed, report.failed) == (None, None)


# -- the health of a server that was started here -------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        streams("HTTP/1.1 200 OK\n\n", forever(b"x" * 9999)),
        streams("HTTP/1.1 200 OK\n\n", forever(b"x"), pause=0.05),
        streams("", forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 50)),
        streams("HTTP/1.1 200 OK\n", forever(b"X: y\r\n")),
        streams("", lambda: iter(())),
    ],
    ids=["endless", "drips", "endless replies with 100", "endless headers", "nothing"],
)
def test_another_program_on_the_port_holds_nobody_up(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata.llm.vllm_server.REQUEST_TIMEOUT", SECONDS)
    began = time.monotonic()
    with HostileServer(attack, is_everywhere=True) as server:
        assert _get(server.port, "/health", "key") is None
    assert time.monotonic() - began < 30
