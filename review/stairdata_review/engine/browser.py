"""What a reviewer's browser may do on pages of this server: nothing that a text brought with it, and no call elsewhere.

The texts that people review were written by models. `review push` sends them so that they stay text; this is the
second lock: scripts run if they are Argilla's own, by file or by hash, so that no handler, `javascript:` link or
script in a text does, and nothing is loaded from another host, images and Argilla's web fonts included.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_INLINE = re.compile(r"<script>(.+?)</script>", re.DOTALL)
_BASE_URL = "@@baseUrl@@"


def policy(pages: Path) -> str:
    """Return the content security policy for Argilla's pages, the hashes of their own inline scripts in it."""
    hashes = " ".join(sorted({_hash(script) for page in pages.rglob("*.html") for script in _inline_scripts(page)}))
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' {hashes}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "frame-src 'none'",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )


def with_headers(application: Application, pages: Path) -> Application:
    """Return the application with the policy on each of its answers."""
    headers = [
        (b"content-security-policy", policy(pages).encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await application(scope, receive, send_with_headers)

    return answer


def _inline_scripts(page: Path) -> list[str]:
    # the server puts its base address in here when it starts; ours is the root
    text = page.read_text(encoding="utf-8").replace(_BASE_URL, "")
    return _INLINE.findall(text)


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"
