"""JSON objects and heads of tables with names that differ: of two equal ones the last would replace the first."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from stairdata_schemas.errors import InputError, quote

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]', re.DOTALL)


class KeyTwiceError(InputError):
    """A name that stands twice; the message says which and where, but not in which file."""


def loads(text: str | bytes, *, line: int = 1) -> Any:
    """Read JSON.

    Args:
        text: one document.
        line: the number of its first line, for the message.

    Raises:
        KeyTwiceError: an object has a key twice.
        json.JSONDecodeError: it is no JSON, or is nested too deep.
        UnicodeDecodeError: bytes that are not UTF-8.
    """
    words = text if isinstance(text, str) else text.decode("utf-8")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise KeyTwiceError(_explain(words, line))
        return found

    try:
        return json.loads(words, object_pairs_hook=unique)
    except RecursionError as error:
        raise json.JSONDecodeError("its lists and objects are nested too deep", words, 0) from error


def check_names(names: Sequence[str]) -> None:
    """Refuse the head of a table in which two columns have one name.

    Raises:
        KeyTwiceError: with the numbers of both, counted from 1; columns without a name are nobody's.
    """
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        first = seen.setdefault(name, number)
        if name and first != number:
            raise KeyTwiceError(
                f"the column {quote(name)} stands twice in the head, as columns {first} and {number}; remove or "
                "rename one"
            )


def check_keys(text: str | bytes) -> None:
    """Refuse JSON in which an object has a key twice; whether it is JSON at all is for its reader to say.

    Raises:
        KeyTwiceError: with line and column of both.
    """
    with suppress(ValueError, RecursionError):
        loads(text)


def _explain(text: str, line: int) -> str:
    """Say which key stands twice, with line and column of both."""
    objects: list[dict[str, int] | None] = []  # those that are open at a place; None is a list
    is_key = False
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in {"{", "["}:
            objects.append({} if word == "{" else None)
        elif word in {"}", "]"}:
            objects.pop()
        elif is_key and word.startswith('"') and objects and objects[-1] is not None:
            first = objects[-1].setdefault(json.loads(word, strict=False), token.start())
            if first != token.start():
                places = f"at {_place(text, first, line)} and at {_place(text, token.start(), line)}"
                return f"the key {quote(json.loads(word, strict=False))} stands twice, {places}; remove one"
        is_key = word in {"{", ","}
    return "an object has a key twice; remove one"


def _place(text: str, position: int, line: int) -> str:
    before = text[:position]
    return f"line {line + before.count(chr(10))}, column {position - before.rfind(chr(10))}"
