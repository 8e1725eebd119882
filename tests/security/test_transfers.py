"""Answers of the Hub end: by a limit of bytes, and by the clock, however they are sent."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import httpx2
import pytest

from stairdata.hub import transfers
from stairdata.hub.transfers import TransferError, transfer_limit
from stairdata_schemas.formats.limits import MEBIBYTE

# Each connection ends with its answer, and says so: a client that kept it could meet the end of it while it asks again.
HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"


def endless() -> Iterator[bytes]:
    yield HEAD + b"transfer-encoding: chunked\r\n\r\n"
    while True:
        yield b"100000\r\n" + b"a" * MEBIBYTE + b"\r\n"


def announced() -> Iterator[bytes]:
    yield HEAD + b"content-length: 600000000\r\n\r\n"


def packed() -> Iterator[bytes]:
    content = gzip.compress(b"a" * 30 * MEBIBYTE)
    yield HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(content) + content


def body_byte_by_byte() -> Iterator[bytes]:
    yield HEAD + b"content-length: 1000\r\n\r\n"
    while True:
        yield b"a"


def head_byte_by_byte() -> Iterator[bytes]:
    yield HEAD + b"x-slow: "
    while True:
        yield b"a"


def endless_hints() -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "pause", "said"),
    [
        (endless, 0.0, "is over the limit of 16.0 MB"),
        (announced, 0.0, "has 572.2 MB, over the limit of 16.0 MB"),
        (packed, 0.0, "came compressed"),
        (body_byte_by_byte, 0.05, "is too slow"),
        (head_byte_by_byte, 0.05, "is too slow"),
        (endless_hints, 0.05, "is too slow"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_answer_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Iterator[bytes]], pause: float, said: str
) -> None:
    monkeypatch.setattr(transfers, "FIRST_SECONDS", 0.5)
    with _serving(answer, pause) as url, _client() as client:
        began = time.monotonic()
        with pytest.raises(TransferError, match=said):
            client.get(f"{url}/api/datasets")
        assert time.monotonic() - began < 30


def test_an_upload_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def answer() -> Iterator[bytes]:
        yield HEAD + b"content-length: 2\r\n\r\nok"

    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            now[0] += 50
            yield b"a" * 1000

    monkeypatch.setattr(transfers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with _serving(answer, 0.0) as url, _client() as client:
        assert client.put(f"{url}/lfs", content=pieces()).text == "ok"
        assert now[0] > transfers.FIRST_SECONDS


def test_a_file_may_have_the_size_that_is_known_of_it() -> None:
    def answer() -> Iterator[bytes]:
        yield HEAD + b"content-length: 1000\r\n\r\n" + b"a" * 1000

    with _serving(answer, 0.0) as url, _client() as client:
        with transfer_limit(1000):
            assert len(client.get(f"{url}/datasets/org/data/resolve/main/x").content) == 1000
        with transfer_limit(999), pytest.raises(TransferError, match="over the limit of 999 bytes"):
            client.get(f"{url}/datasets/org/data/resolve/main/x")


def _client() -> httpx2.Client:
    return httpx2.Client(transport=transfers._Transport(httpx2.HTTPTransport()), timeout=20)


class _serving:  # noqa: N801 - used as a function
    """Answers each connection to a port of its own, piece by piece."""

    def __init__(self, answer: Callable[[], Iterator[bytes]], pause: float) -> None:
        self._answer, self._pause = answer, pause
        self._ended = threading.Event()

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._socket.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                try:
                    for piece in self._answer():
                        connection.sendall(piece)
                        if self._ended.wait(self._pause):
                            break
                except OSError:
                    continue
