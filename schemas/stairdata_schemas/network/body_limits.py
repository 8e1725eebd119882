"""How much the body of a server's answer may hold: bytes once decompressed, and values of a JSON document.

Bytes alone do not bound memory: `{},` is three bytes, and an object of up to a kilobyte once it is read. So the values
are counted, too, while the body arrives and before anything is made of it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
_UNCLOSED = b"<"


class BodyLimit(NamedTuple):
    """The most that a body may hold."""

    bytes: int
    """After decompression."""
    values: int | None
    """Of the JSON document that it is: members of objects and elements of lists. None: it is no such document."""


class BodyLimitError(Exception):
    """A body holds more than its limit."""


class BodyMeter:
    """Counts a body piece by piece; it keeps none of it.

    Args:
        limit: the most that the pieces may hold together.
    """

    def __init__(self, limit: BodyLimit) -> None:
        self.bytes = 0
        self.values = 0
        self._limit = limit
        self._begun = b""
        """What the next piece goes on with: the quotation mark of a string, a backslash, or both."""

    def count(self, piece: bytes) -> None:
        """Count one more piece.

        Raises:
            BodyLimitError: that is too much.
        """
        self.bytes += len(piece)
        if self.bytes > self._limit.bytes:
            raise BodyLimitError(f"the answer has more than {self._limit.bytes:,} bytes, too many for what was asked")
        if self._limit.values is None:
            return
        self._count_values(self._begun + piece)
        if self.values > self._limit.values:
            raise BodyLimitError(f"the answer has more than {self._limit.values:,} values, too many for what was asked")

    def _count_values(self, text: bytes) -> None:
        # a backslash is read together with what it escapes
        is_escape = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
        self._begun, text = (b"\\", text[:-1]) if is_escape else (b"", text)
        outside = _STRING.sub(_UNCLOSED + rb"\1", text)
        if outside.endswith(_UNCLOSED):
            self._begun = b'"' + self._begun
        self.values += sum(map(outside.count, (b",", b"[", b"{")))
