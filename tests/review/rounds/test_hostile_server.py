"""A server that passes for Argilla and means harm: a request ends in time, in one message, and in little memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Callable
from http.client import HTTPException

import pytest

from stairdata_review.rounds import client
from stairdata_review.rounds.client import Argilla, ServerAccess
from stairdata_review.server import running_server
from stairdata_schemas.errors import ReviewError
from stairdata_schemas.network.body_limits import BodyLimit
from tests.servers.hostile_llm import Attack, HostileServer, Sent, chunk, forever, sends, silence, streams

SECONDS = 0.3
OK = "HTTP/1.1 200 OK\nContent-Type: application/json\n"
CHUNKED = f"{OK}Transfer-Encoding: chunked\n\n"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS", ())
    monkeypatch.setattr(client, "TIMEOUT", SECONDS)
    monkeypatch.setattr(client, "LIMIT", BodyLimit(10_000_000, 10_000))
    monkeypatch.setattr(running_server, "REQUEST_TIMEOUT", SECONDS)


ENDLESS: dict[str, Attack] = {
    "a body that drips": streams(CHUNKED, forever(chunk(b" ")), pause=0.05),
    "a header that drips": streams("HTTP/1.1 200 OK\nX: ", forever(b"a"), pause=0.05),
    "endless replies with 103": streams("", forever(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50)),
    "replies with 100 that drip": streams("", forever(b"HTTP/1.1 100 Continue\r\n\r\n"), pause=0.05),
    "silence": silence,
}


def refusal(attack: Attack, ask: Callable[[Argilla], object] = Argilla.check) -> str:
    """Return what is said about a server that attacks."""
    with (
        HostileServer(attack, is_everywhere=True) as server,
        Argilla(ServerAccess(f"http://127.0.0.1:{server.port}", "key")) as argilla,
        pytest.raises(ReviewError) as caught,
    ):
        ask(argilla)
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize("attack", ENDLESS.values(), ids=ENDLESS)
def test_a_request_ends_in_time(attack: Attack) -> None:
    began = time.monotonic()
    assert "doesn't answer (ReadTimeout); nothing is lost" in refusal(attack)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (streams(f'{OK}\n"', forever(b"a" * 65_536)), "more than 10,000,000 bytes"),
        (streams(f"{OK}\n[", forever(b"{}," * 9999)), "more than 10,000 values"),
        (streams("HTTP/1.1 500 No\n\n", forever(b"a" * 65_536)), "more than 10,000,000 bytes"),
        (sends(gzip.compress(b"{}"), "Content-Encoding: gzip"), "compresses its answer"),
        (sends(b"BZh9", kind="text/plain; charset=bz2", status="400 No"), "'BZh9'"),
        (sends(b'{"role": ' + b"[" * 9999), "is not an Argilla server"),
        (sends(b"9" * 10_000), "is not an Argilla server"),
    ],
    ids=["bytes", "values", "an error", "gzip", "charset", "nested", "digits"],
)
def test_an_answer_is_bounded(attack: Attack, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 60)
    assert says in refusal(attack)


@pytest.mark.parametrize(
    "page", [[], {}, {"total": "9", "items": []}, {"total": 10**300, "items": [{"id": "1"}]}], ids=["0", "1", "2", "3"]
)
def test_pages_that_are_none(page: object) -> None:
    attack = sends(json.dumps(page).encode())
    assert "something else than records" in refusal(attack, lambda argilla: list(argilla.records("1")))


@pytest.mark.slow
def test_the_clock_runs_for_each_request_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over one connection, which is only made once."""
    monkeypatch.setattr(client, "TIMEOUT", 1.0)
    connections: list[socket.socket] = []

    def attack(connection: socket.socket, sent: Sent) -> None:
        connections.append(connection)
        body = b'{"role": "owner"}'
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
        file = connection.makefile("rb")
        for _ in range(3):
            while file.readline() not in {b"\r\n", b""}:
                pass
            time.sleep(0.4)
            connection.sendall(head + body)
        while file.readline() not in {b"\r\n", b""}:
            pass
        for _ in range(100):  # and now nothing but blanks in front of a header's end
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            time.sleep(0.1)

    def ask(argilla: Argilla) -> None:
        for _ in range(4):
            assert argilla.check() == {"role": "owner"}
        argilla.check()

    began = time.monotonic()
    assert "ReadTimeout" in refusal(attack, ask)
    assert time.monotonic() - began < 8
    assert len(connections) == 1


@pytest.mark.parametrize(
    "attack",
    [
        *ENDLESS.values(),
        streams(f"{OK}\n", forever(b" " * 9999)),
        streams("HTTP/1.1 200 OK\n", forever(b"X: y\r\n")),
        sends(b"{}", "Location: http://127.0.0.1:1/", status="302 Found"),
    ],
    ids=[*ENDLESS, "an endless body", "endless headers", "a redirect"],
)
def test_another_program_on_the_port_is_no_healthy_server(attack: Attack) -> None:
    began = time.monotonic()
    with HostileServer(attack, is_everywhere=True) as server, contextlib.suppress(OSError, HTTPException):
        assert running_server._get(f"http://127.0.0.1:{server.port}", "/api/v1/me", {}) == b""
    assert time.monotonic() - began < 30


def test_a_health_check_reads_a_sound_answer() -> None:
    with HostileServer(sends(b'{"role": "owner"}'), is_everywhere=True) as server:
        assert running_server._get(f"http://127.0.0.1:{server.port}", "/me", {}) == b'{"role": "owner"}'
