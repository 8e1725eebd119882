"""What stands before a model server of ours: it wants the key for every path, and a Host of this machine.

vLLM asks for its key below /v1 and a few other paths alone; /invocations, /tokenize, /metrics or /docs answer to every
user of the machine, and to every web page whose name is made to point to 127.0.0.1. `vllm_command` hands `ServerGuard`
to vLLM by its import path (`--middleware`). vLLM adds such a middleware last, so that it is the outermost: nothing of
vLLM's sees a request that it refuses (`vllm/entrypoints/serve/middleware/register.py`).

Standard library only, since it is imported in the server's process.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"
"""The environment of the server's process holds the key: other users can't read it, and no command line shows it."""
OPEN_PATH = "/health"
_LOCAL_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1

AsgiScope = MutableMapping[str, Any]
AsgiReceive = Callable[[], Awaitable[MutableMapping[str, Any]]]
AsgiSend = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, AsgiReceive, AsgiSend], Awaitable[None]]


class ServerGuard:
    """An ASGI middleware that answers 421 to a foreign Host, and 401 to a request without the key.

    Only GET and HEAD of /health need no key. OPTIONS does, too: no web page is a client of these servers.

    Args:
        app: what it stands before.
        key: that it asks for; default: the one in the environment, as in a vLLM server's process.

    Raises:
        RuntimeError: there is no key; the server does not start then.
    """

    def __init__(self, app: AsgiApp, key: str | None = None) -> None:
        key = os.environ.get(KEY_VARIABLE, "") if key is None else key
        if not key:
            raise RuntimeError(f"no key in {KEY_VARIABLE}: this server does not run without one")
        self._app = app
        self._digest = _digest(key.encode())

    async def __call__(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if not _is_local(scope):
            await _refuse(scope, send, 421, "this server answers to 127.0.0.1 and localhost alone")
        elif not (self._has_key(scope) or _is_health_check(scope)):
            await _refuse(scope, send, 401, "give the server's key: Authorization: Bearer KEY")
        else:
            await self._app(scope, receive, send)

    def _has_key(self, scope: AsgiScope) -> bool:
        given = _values(scope, b"authorization")
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        # digests have equal length, so that the time tells neither the key nor how long it is
        return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(key.strip()), self._digest)


def _is_local(scope: AsgiScope) -> bool:
    given = _values(scope, b"host")
    return len(given) == 1 and _LOCAL_HOST.fullmatch(given[0].decode("latin-1")) is not None


def _is_health_check(scope: AsgiScope) -> bool:
    return scope["type"] == "http" and scope["path"] == OPEN_PATH and scope["method"] in {"GET", "HEAD"}


def _values(scope: AsgiScope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def _refuse(scope: AsgiScope, send: AsgiSend, status: int, why: str) -> None:
    """Answer a request with an error in OpenAI's form, and a handshake of a websocket likewise where that works."""
    prefix = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": why})
            return
        prefix = "websocket.http"
    body = json.dumps({"error": {"message": why, "type": "invalid_request_error", "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    challenge = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": f"{prefix}.response.start", "status": status, "headers": headers + challenge})
    await send({"type": f"{prefix}.response.body", "body": body})
