"""Requests that the server refuses, by name, and whatever else may come: it goes on answering."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
import pytest

from stairdata.serving.limits import Admission, ServingLimits
from stairdata.serving.refusals import RefusedRequestError
from stairdata.serving.requests import NEUTRAL, read_request
from tests.stairdata.serving.conftest import KEY, PATIENCE

if TYPE_CHECKING:
    from tests.stairdata.serving.conftest import RunningServer, ScriptedSearcher

Serve = Callable[..., "RunningServer"]
SOUND: dict[str, Any] = {"model": "actor", "messages": [{"role": "user", "content": "Hi"}]}
LIMITS = ServingLimits(messages=3, characters=50)


def refused(**changes: Any) -> RefusedRequestError:
    with pytest.raises(RefusedRequestError) as caught:
        read_request(json.dumps(SOUND | changes).encode(), LIMITS)
    assert caught.value.status == 400
    return caught.value


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [TOOL]),
        ("tool_choice", "required"),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("response_format", {"type": "json_object"}),
        ("n", 2),
        ("n", True),
        ("stop", ["x"]),
        ("logit_bias", {"1": 5}),
        ("presence_penalty", 0.5),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("store", True),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert name in error.message
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_values_with_which_nothing_is_asked_for_are_taken() -> None:
    for name, values in NEUTRAL.items():
        for value in (*values, None):
            read_request(json.dumps(SOUND | {name: value}).encode(), LIMITS)


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages"),
        ([{"role": "user", "content": "Hi"}] * 4, "messages"),
        ([{"role": "user", "content": "x" * 51}], "messages"),
        ([{"role": "user", "content": " \u200b"}], "messages"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "messages"),
        (["Hi"], "messages[0]"),
        ([{"role": "tool", "content": "Hi"}], "messages[0].role"),
        ([{"role": ["user"], "content": "Hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": {"text": "Hi"}}], "messages[0].content"),
        ([{"role": "user", "content": [IMAGE]}], "messages[0].content[0]"),
        ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ([{"role": "assistant", "content": "Hi", "tool_calls": [TOOL]}], "messages[0]"),
    ],
)
def test_messages_that_are_no_conversation(messages: Any, place: str) -> None:
    assert refused(messages=messages).param == place


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", {"role": "user"}),
        ("stream", "yes"),
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_completion_tokens", True),
        ("seed", 2**70),
        ("seed", 10**400),
        ("model", None),
        ("stream_options", {"include_usage": True}),
        ("unheard_of", 1),
    ],
)
def test_values_that_are_wrong(name: str, value: Any) -> None:
    assert refused(**{name: value}).param == name


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'{"a": NaN}', b"\xff\xfe{", b"[" * 200_000, b"9" * 9999])
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    with pytest.raises(RefusedRequestError) as caught:
        read_request(body, LIMITS)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_how_long_the_server_asks_to_wait() -> None:
    now = [0.0]
    admission = Admission(2, lambda: now[0])
    first, second = admission.enter(), admission.enter()
    for _ in range(2):
        with pytest.raises(RefusedRequestError) as caught:
            admission.enter()
        assert caught.value.headers == {"Retry-After": "3"}, "half of the first guess"
    now[0] = 10_000.0
    first()
    second()
    admission.enter()
    admission.enter()
    with pytest.raises(RefusedRequestError) as caught:
        admission.enter()
    assert caught.value.headers == {"Retry-After": "60"}, "the most that clients wait"


# --- over HTTP


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/completions", "/classify", "/docs", "/"])
def test_every_route_wants_the_key_and_a_host_of_this_machine(serve: Serve, path: str) -> None:
    server = serve()
    for wrong in ("", "Bearer ", f"Bearer {KEY}x", f"Basic {KEY}"):
        status, answer, _ = server.send("POST", path, b"{}", {"Authorization": wrong})
        assert (status, answer["error"]["code"]) == (401, 401)
    assert server.send("POST", path, b"{}", {"Host": "evil.example.org"})[0] == 421


def test_there_are_two_routes_and_a_health_check(serve: Serve, searcher: ScriptedSearcher) -> None:
    server = serve()
    assert server.send("GET", "/health", headers={"Authorization": ""})[0] == 200
    for path in (
        "/v1/completions",
        "/tokenize",
        "/classify",
        "/docs",
        "/openapi.json",
        "/v1/models/",
        "/v1/models/actor",
    ):
        for method in ("GET", "POST"):
            status, answer, _ = server.send(method, path, b"{}" if method == "POST" else None)
            assert (status, answer["error"]["type"]) == (404, "invalid_request_error"), path
    status, answer, headers = server.send("GET", "/v1/chat/completions")
    assert (status, answer["error"]["message"], headers["Allow"]) == (405, "Method Not Allowed", "POST")
    with pytest.raises(openai.AuthenticationError):
        server.client(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="no model 'other' here; this server has 'actor'"):
        server.client().chat.completions.create(model="other", messages=SOUND["messages"])
    assert searcher.questions == []


def test_a_body_that_is_too_large_or_of_another_type(serve: Serve) -> None:
    server = serve(body_bytes=2000)
    text = json.dumps(SOUND | {"user": "x" * 2000}).encode()
    assert server.send(body=text)[0] == 413
    connection = server.connect()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/v1/chat/completions", iter([text[:9], text[9:]]), headers, encode_chunked=True)
    assert connection.getresponse().status == 413, "where no length is said, too"
    connection.close()
    with pytest.raises(openai.APIStatusError, match="more than 2,000 bytes"):
        server.client().chat.completions.create(model="actor", messages=SOUND["messages"], user="x" * 2000)
    body = json.dumps(SOUND).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert server.send(body=body, headers={"Content-Type": kind})[0] == 415
    assert server.send(body=body, headers={"Content-Type": "Application/JSON; charset=utf-8"})[0] == 200


def test_a_body_that_does_not_come(serve: Serve) -> None:
    server = serve(body_seconds=0.05)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as slow:
        slow.sendall(_head(100) + b"{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def _head(length: int) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def malformed(number: int) -> bytes:
    """Damage a sound request: one of many ways, drawn by number."""
    rng = random.Random(number)
    value: Any = rng.choice(
        [None, True, -1, 0, 2**63, 10**300, 1e308, "", "x", "\ud800", [], {}, [[]], {"a": {}}, [None], "<|im_end|>\0"]
    )
    messages: Any = [{"role": rng.choice(["user", "system", value]), "content": rng.choice(["Hi", value])}]
    changed = json.dumps(SOUND | {rng.choice([*SOUND, *NEUTRAL, "seed", "stream", "top_p"]): value})
    nested = rng.choice(["[", '{"a":']) * rng.randint(100, 50_000)
    body = rng.choice(
        [
            changed,
            json.dumps(SOUND | {"messages": rng.choice([messages, value, messages * 200])}),
            changed[: rng.randint(0, len(changed))],
            "".join(rng.choice('{}[]",:\\u0123') for _ in range(rng.randint(1, 200))),
            '{"model": "actor", "messages": ' + nested,
            '{"seed": ' + "9" * rng.randint(5, 9000) + "}",
        ]
    ).encode()
    if rng.random() < 0.2:
        place = rng.randrange(len(body)) if body else 0
        body = body[:place] + rng.randbytes(3) + body[place:]
    head = _head(len(body) + rng.choice([0, 0, 0, 0, 7, -3]))
    if rng.random() < 0.25:
        old, new = rng.choice(
            [
                (b"application/json", b"text/html"),
                (b"Content-Length: ", b"Content-Length: -"),
                (b"HTTP/1.1", b"HTTP/9.9"),
                (b"Host: localhost\r\n", b""),
                (b"POST", b"BREW"),
                (b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
                (b"Bearer", b"\x00\xff"),
            ]
        )
        head = head.replace(old, new)
    return head + body


def test_after_200_malformed_requests_the_server_answers(serve: Serve, searcher: ScriptedSearcher) -> None:
    server = serve(body_seconds=1.0)
    statuses = []
    for number in range(200):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
            answer = b""
            with contextlib.suppress(OSError):  # it may hang up before all is sent
                connection.sendall(malformed(number))
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                answer = connection.recv(100)
            statuses.append(int(answer.split()[1]) if answer else None)
    assert set(statuses) <= {200, 400, 401, 404, 405, 408, 413, 415, 421, None}, "none is an error of the server's"
    assert statuses.count(400) > 80
    assert len(server.client().models.list().data) == 1
    sound = server.client().chat.completions.create(model="actor", messages=SOUND["messages"])
    assert sound.choices[0].finish_reason == "stop"
    assert server.service.admission.in_work == 0
