"""Taking secrets out of text for people: messages, logs, tracebacks.

Taken out are the keys that this process holds (`hold`), those of its environment, what has the shape of a secret, and
the credentials in URLs. `RedactingStream` does so for all that is written to a stream, whoever writes: a log, a
library, the traceback of a server's answer that repeats the key it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, TextIO

from stairdata_schemas.secrets.own import LEAST_CHARACTERS, environment_secrets, spellings
from stairdata_schemas.secrets.shapes import SHAPES, is_placeholder
from stairdata_schemas.secrets.urls import is_telling_parameter

REDACTED = "<secret>"
_held: set[str] = set()
_LOGIN = re.compile(r"(?<=://)[^/\s@'\"]+@")
_PARAMETER = re.compile(r"([?&#])([\w.-]+)=([^&\s'\"]+)")


def hold(secret: str) -> None:
    """Remember a key that this process uses, so that no text shows it; too short ones are parts of other words."""
    if len(secret) >= LEAST_CHARACTERS:
        _held.update(spellings(secret))


def redact(text: str) -> str:
    """Return a text without secrets in it."""
    for secret in sorted(_held | _of_environment(), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    text = _LOGIN.sub(f"{REDACTED}@", text)
    text = _PARAMETER.sub(_without_value, text)
    for shape in SHAPES.values():
        if not shape.within or any(part.lower() in text.lower() for part in shape.within):
            text = re.sub(shape.pattern, lambda match, shape=shape: _hidden(shape, match), text)  # type: ignore[misc]
    return text


class RedactingStream:
    """A stream that writes what it is given without secrets; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without secrets; returns its length as it was given."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _hidden(shape: Any, match: re.Match[str]) -> str:
    return match[0] if is_placeholder(shape, match[0]) or REDACTED in match[0] else REDACTED


def _without_value(match: re.Match[str]) -> str:
    before, name, _ = match.groups()
    return f"{before}{name}={REDACTED}" if is_telling_parameter(name) else match[0]


@cache
def _of_environment() -> frozenset[str]:
    return frozenset(spelled for secret in environment_secrets() for spelled in spellings(secret))
