"""A model server that means harm: plain sockets and threads, one attack at a time, on 127.0.0.1.

An attack is a function that gets the connection after one request has been read from it, and writes what it likes until
the client closes. What it is not about is answered as a sound server does: the list of models, and chats.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

GIBIBYTE = 2**30
FILLER = b"a" * 65_536
STEPS = [{"title": "Plan:", "body": "Use a pot, and some heat."}, {"title": "Check:", "body": "Mind the hot steam."}]
CONTENT = json.dumps({"steps": STEPS, "output": "Put a pot of water on the stove."})
USAGE = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "nobody"}]}


@dataclass(frozen=True, slots=True)
class Sent:
    """A request."""

    method: str
    path: str
    body: bytes


Attack = Callable[[socket.socket, Sent], None]


def reply(
    connection: socket.socket, body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json"
) -> None:
    """Send a whole answer, or all that the client takes of it."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    connection.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode() + body)


def chat_answer(**changes: Any) -> dict[str, Any]:
    """Return the body of a sound answer of a teacher, with some changes."""
    choice = {"index": 0, "message": {"role": "assistant", "content": CONTENT}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "choices": [choice], "usage": USAGE, **changes}


@dataclass
class HostileServer:
    """Serves until it is stopped.

    Attributes:
        port: where.
        attack: on POST requests, and on others where `is_everywhere`.
        requests: what was asked so far.
    """

    attack: Attack
    is_everywhere: bool = False
    port: int = 0
    requests: list[Sent] = field(default_factory=list)
    _open: set[socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> HostileServer:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *tuple(self._open)):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            sent = _read(connection)
            self.requests.append(sent)
            if sent.method == "POST" or self.is_everywhere:
                self.attack(connection, sent)
            else:
                reply(connection, json.dumps(MODELS).encode())
        self._open.discard(connection)


def _read(connection: socket.socket) -> Sent:
    file = connection.makefile("rb")
    method, path, _ = file.readline().decode().split(" ")
    length = 0
    while (line := file.readline().strip()) != b"":
        name, _, value = line.decode().partition(":")
        length = int(value) if name.lower() == "content-length" else length
    return Sent(method, path, file.read(length))


# -- attacks ---------------------------------------------------------------------------------------------------------


def sends(body: bytes | dict[str, Any], *headers: str, **options: str) -> Attack:
    """Answer with a body as it stands."""
    plain = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda connection, _: reply(connection, plain, *headers, **options)


def streams(head: str, pieces: Callable[[], Iterator[bytes]], pause: float = 0.0) -> Attack:
    """Send a head, then pieces until the client has had enough."""

    def attack(connection: socket.socket, _: Sent) -> None:
        connection.sendall(head.replace("\n", "\r\n").encode())
        for piece in pieces():
            connection.sendall(piece)
            time.sleep(pause)

    return attack


def forever(piece: bytes) -> Callable[[], Iterator[bytes]]:
    """Repeat a piece without end."""

    def pieces() -> Iterator[bytes]:
        while True:
            yield piece

    return pieces


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def silence(connection: socket.socket, _: Sent) -> None:
    """Say nothing until the client goes."""
    connection.recv(1)


def deflated(size: int) -> bytes:
    """Compress a string of so many bytes in JSON by a thousand times."""
    packer = zlib.compressobj(9)
    begin = packer.compress(b'"') + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"a" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)  # which stands for itself from here on
    return begin + block * (size // 2**20)


def gzipped_twice(size: int) -> bytes:
    return gzip.compress(gzip.compress(b"a" * 2**20) * (size // 2**20))
