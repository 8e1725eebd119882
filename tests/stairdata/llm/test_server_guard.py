"""Who a vLLM server of ours answers to: the guard alone, and before the real server on every one of its routes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, MutableMapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from stairdata.llm.in_server.guard import KEY_VARIABLE, ServerGuard
from stairdata.llm.vllm_server import ManagedServer, ServerOptions, vllm_missing

KEY = "k3y-of-this-server"
LOCAL = (b"host", b"127.0.0.1:8000")
AUTHORIZED = (b"authorization", f"Bearer {KEY}".encode())
Message = MutableMapping[str, Any]


async def _behind(_scope: Message, _receive: Any, send: Any) -> None:
    await send({"type": "reached"})


def ask(**changes: Any) -> list[Message]:
    """Send the guard one request, and return what it sends back or lets through."""
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [LOCAL], **changes}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(ServerGuard(_behind)(scope, receive, send))
    return sent


def is_let_through(**changes: Any) -> bool:
    return ask(**changes) == [{"type": "reached"}]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.mark.parametrize("path", ["/v1/models", "/invocations", "/tokenize", "/metrics", "/docs", "/", "/health/", ""])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "TRACE"])
def test_every_path_and_method_wants_the_key(path: str, method: str) -> None:
    start, body = ask(path=path, method=method)
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in start["headers"]
    assert "Authorization" in json.loads(body["body"])["error"]["message"]
    assert KEY.encode() not in body["body"]
    assert is_let_through(path=path, method=method, headers=[LOCAL, AUTHORIZED])


@pytest.mark.parametrize(
    ("method", "through"), [("GET", True), ("HEAD", True), ("POST", False), ("OPTIONS", False), ("PUT", False)]
)
def test_health_alone_is_open_and_only_to_be_read(method: str, through: bool) -> None:
    assert is_let_through(path="/health", method=method) is through


@pytest.mark.parametrize(
    "given",
    [
        [],
        [b""],
        [KEY.encode()],
        [b"Bearer"],
        [b"Bearer "],
        [b"Bearer " + KEY.encode()[:-1]],
        [b"Bearer " + KEY.encode() + b"x"],
        [b"Basic " + KEY.encode()],
        [b"Bearer \xff\xfe"],
        [b"Bearer " + KEY.encode(), b"Bearer guess"],
    ],
)
def test_a_wrong_or_doubled_key_is_refused(given: list[bytes]) -> None:
    headers = [LOCAL, *((b"authorization", value) for value in given)]
    assert ask(headers=headers)[0]["status"] == 401


@pytest.mark.parametrize("scheme", [b"bearer", b"Bearer", b"BEARER"])
def test_the_scheme_has_no_case(scheme: bytes) -> None:
    assert is_let_through(headers=[LOCAL, (b"Authorization", scheme + b" " + KEY.encode())])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:9", "[::1]", "[::1]:8000", "localhost:65535"]
)
def test_this_machine_is_no_foreign_host(host: str) -> None:
    assert is_let_through(headers=[(b"host", host.encode()), AUTHORIZED])
    assert is_let_through(path="/health", headers=[(b"host", host.encode())])


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["evil.example.org"],
        ["evil.example.org:8000"],
        ["127.0.0.1.evil.example.org"],
        ["localhost.evil.example.org:8000"],
        ["localhost@evil.example.org"],
        ["127.0.0.1:8000\n"],
        ["127.0.0.1:port"],
        ["127.0.0.11"],
        ["0.0.0.0:8000"],
        ["::1"],
        [""],
        ["127.0.0.1", "evil.example.org"],
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_a_foreign_host_is_refused_even_with_the_key(hosts: list[str], path: str) -> None:
    headers = [*((b"host", host.encode()) for host in hosts), AUTHORIZED]
    assert ask(path=path, headers=headers)[0]["status"] == 421


@pytest.mark.parametrize(("headers", "status"), [([LOCAL], 401), ([(b"host", b"a.example.org"), AUTHORIZED], 421)])
def test_a_websocket_is_refused_before_it_is_accepted(headers: list[tuple[bytes, bytes]], status: int) -> None:
    answer = {"type": "websocket", "path": "/v1/realtime", "headers": headers}
    (closed,) = ask(**answer)
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
    start, body = ask(**answer, extensions={"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
    assert body["type"] == "websocket.http.response.body"
    assert is_let_through(type="websocket", path="/v1/realtime", headers=[LOCAL, AUTHORIZED])
    assert ask(type="websocket", path="/health", headers=[LOCAL])[0]["type"] == "websocket.close"


def test_the_server_is_told_of_its_start_and_end() -> None:
    assert is_let_through(type="lifespan")


@pytest.mark.parametrize("key", ["", None])
def test_without_a_key_there_is_no_server(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(RuntimeError, match=KEY_VARIABLE):
        ServerGuard(_behind)


# --- the real server

LISTING = """
import json

class RouteLister:
    '''Answers /all-routes with every route of the application behind it, those of mounted ones included.'''

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope.get("path") != "/all-routes":
            return await self.app(scope, receive, send)
        body = json.dumps(list(routes_of(scope["app"].routes))).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def routes_of(routes, before=""):
    for route in routes:
        path = before + getattr(route, "path", "")
        inner = getattr(route, "routes", None)
        yield type(route).__name__, path, sorted(getattr(route, "methods", None) or ["GET"])
        yield from routes_of(inner or [], path)
"""


@pytest.fixture(scope="module")
def real_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    """A vLLM server with all routes that it can have, those for its developers included."""
    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "listing.py").write_text(LISTING)
    options = ServerOptions(
        str(tiny_model),
        folder / "server.log",
        max_model_len=256,
        kv_cache_gib=1,
        extra=("--middleware=listing.RouteLister",),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_USE_RUST_FRONTEND", "1")
        with ManagedServer(options) as server:
            yield server


def status(server: ManagedServer, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> int:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def all_routes(server: ManagedServer) -> list[tuple[str, str, list[str]]]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", "/all-routes")
        return [(kind, path, methods) for kind, path, methods in json.loads(connection.getresponse().read())]
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.skipif(sys.platform != "linux", reason="as the other tests of the real server")
def test_no_route_of_the_real_server_answers_without_the_key_or_to_a_foreign_host(real_server: ManagedServer) -> None:
    authorized = {"Authorization": f"Bearer {real_server.api_key}"}
    foreign = {"Host": "evil.example.org", **authorized}
    routes = all_routes(real_server)
    paths = {path for _, path, _ in routes}
    assert {"/invocations", "/tokenize", "/detokenize", "/docs", "/openapi.json", "/v1/completions"} <= paths
    assert any(path.startswith("/metrics") for path in paths)
    assert len(paths) > 25
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for _, path, methods in [*routes, ("", "/no/such/route", ["GET"]), ("", "/v1/realtime", ["GET"])]:
        place = path.partition("{")[0] or "/"
        for method in {*methods, "OPTIONS", "POST"}:
            is_open = place == "/health" and method in {"GET", "HEAD"}
            assert status(real_server, method, place, {}) == (200 if is_open else 401), (method, place)
            assert status(real_server, method, place, foreign) == 421, (method, place)
        assert status(real_server, "GET", place, upgrade) == 401, ("websocket", place)
        assert status(real_server, "GET", place, {**foreign, **upgrade}) == 421, ("websocket", place)
    for path in ("/metrics", "/docs", "/openapi.json", "/v1/models", "/version"):
        assert status(real_server, "GET", path, authorized) == 200
    body = json.dumps({"model": "actor", "prompt": "Hi"}).encode()
    assert status(real_server, "POST", "/tokenize", {**authorized, "Content-Type": "application/json"}, body) == 200


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux alone has")
def test_the_key_of_the_real_server_is_in_no_command_line_and_no_file(real_server: ManagedServer) -> None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert real_server.api_key.encode() not in path.read_bytes()
        except OSError:  # it ended meanwhile
            continue
    for path in real_server.options.log.parent.rglob("*"):
        assert path.is_dir() or real_server.api_key.encode() not in path.read_bytes()
