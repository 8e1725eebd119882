"""A JSON list read element by element, whatever the file's size, with the byte position of what breaks it.

The standard library's decoder does the parsing, because published files hold what stricter ones refuse: Python
writes NaN. It is given a window of the file that grows until an element is whole.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import IO, Any, NamedTuple

from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats.bounded import open_bytes
from stairdata_schemas.formats.limits import ROW_BYTES, check, check_json

WINDOW_BYTES = 4 * 1024**2
_WHITESPACE = " \t\n\r"
_CUT_NUMBER = len("e-")  # what a number may go on with that is not yet a number
_LONGEST_TOKEN = len("-Infinity") + len("\\ud83d\\ude00")


class Duplicates(NamedTuple):
    """Stands for an object in which a key stands more than once."""

    key: str


def read_list(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list; an object with a key twice comes as `Duplicates`.

    Raises:
        InputError: missing, empty, no list, not UTF-8, or cut or broken (with the byte position).
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        with open_bytes(path) as file:
            yield from _Reader(path, file).elements()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error


class _Reader:
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._decoder = json.JSONDecoder(object_pairs_hook=_object)
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._window = ""
        self._start = 0  # byte position of the window
        self._read = 0
        self._is_at_end = False

    def elements(self) -> Iterator[Any]:
        position = self._next(0)
        if self._window.startswith("\ufeff"):  # a byte order mark
            position = self._next(1)
        if self._window[position : position + 1] != "[":
            found = quote(self._window[position : position + 20])
            raise InputError(f"{self._path} has to be a JSON list; it begins with {found}")
        position = self._next(position + 1)
        if self._window[position : position + 1] == "]":
            self._check_end(position + 1)
            return
        while True:
            value, position = self._element(position)
            yield value
            position = self._next(position)
            sign = self._window[position : position + 1]
            if sign == "]":
                self._check_end(position + 1)
                return
            if sign != ",":
                raise self._broken("a comma or the end of the list was expected", position, is_cut=not sign)
            position = self._next(position + 1)

    def _element(self, position: int) -> tuple[Any, int]:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, position)
            except JSONDecodeError as error:
                may_be_cut = self._may_be_cut(error)
                if self._is_at_end or not may_be_cut:
                    raise self._broken(error.msg, error.pos, is_cut=may_be_cut) from error
            except (RecursionError, ValueError) as error:  # ValueError: Python reads no number of 5,000 digits
                what = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
                raise self._broken(what, position) from error
            else:
                if end + _CUT_NUMBER < len(self._window) or self._is_at_end:
                    return value, end
            position = self._grow(position)

    def _may_be_cut(self, error: JSONDecodeError) -> bool:
        """Return whether more text could mend the error: it is at the window's end, or in a string without end."""
        return error.pos >= len(self._window) - _LONGEST_TOKEN or error.msg.startswith("Unterminated string")

    def _next(self, position: int) -> int:
        """Return where the next visible character stands; the window's end where the file ends."""
        while True:
            while position < len(self._window) and self._window[position] in _WHITESPACE:
                position += 1
            if position < len(self._window) or self._is_at_end:
                return position
            position = self._grow(position)

    def _grow(self, position: int) -> int:
        """Forget what stands before a position, and read on, at least as much as is kept."""
        passed, self._window = self._window[:position], self._window[position:]
        self._start += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogatepass"))
        what = f"an element of the list, from byte {self._start} on"
        check(len(self._window), ROW_BYTES, self._path, what)
        chunk = self._file.read(max(WINDOW_BYTES, len(self._window)))
        self._is_at_end = not chunk
        try:
            self._window += self._utf8.decode(chunk, final=self._is_at_end)
        except UnicodeDecodeError as error:
            at = self._read - len(self._utf8.getstate()[0]) + error.start
            raise InputError(f"{self._path} is not UTF-8 at byte {at}; nothing was written") from error
        self._read += len(chunk)
        if len(self._window) > 2 * WINDOW_BYTES:
            check_json(self._window, self._path, what)
        return 0

    def _check_end(self, position: int) -> None:
        position = self._next(position)
        if position < len(self._window):
            raise self._broken("text after the end of the list", position)

    def _broken(self, what: str, position: int, *, is_cut: bool = False) -> InputError:
        at = self._start + len(self._window[:position].encode("utf-8", "surrogatepass"))
        size = self._path.stat().st_size
        how = f"ends in the middle of the list, at byte {size}" if is_cut else f"is not JSON at byte {at} of {size}"
        where = f" (byte {at})" if is_cut else ""
        return InputError(
            f"{self._path} {how}: {what[:1].lower()}{what[1:]}{where}; nothing was written; get a complete file"
        )


def _object(pairs: list[tuple[str, Any]]) -> Any:
    known = dict(pairs)
    if len(known) != len(pairs):
        keys = [key for key, _ in pairs]
        return Duplicates(next(key for key in known if keys.count(key) > 1))
    return known
