"""Rows of a CSV file, read strictly: no row is cut, filled up or joined with the next without a word."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats.limits import ROW_BYTES, check, scaled
from stairdata_schemas.formats.unique_keys import KeyTwiceError, check_names

LONGEST_FIELD = 2**31 - 1


class CsvRow(NamedTuple):
    """A row with as many fields as the head."""

    line: int
    """The line of the file in which it begins, from 1."""
    cells: dict[str, str]
    """By the head's names; columns without a name are left out."""


class UnevenRow(NamedTuple):
    """A row with more or fewer fields than the head: an unquoted separator in a text, or a row that was cut."""

    line: int
    raw: str
    """As it stands in the file."""
    detail: str


def read_csv(lines: Iterable[str], name: str, separator: str = ",") -> Iterator[CsvRow | UnevenRow]:
    """Yield the rows below the head; empty lines are skipped.

    Args:
        lines: of a file that was opened with `newline=""`.
        name: the file, for messages.
        separator: of fields.

    Raises:
        TooLargeError: a row has more characters than `ROW_BYTES`.
        InputError: a column's name stands in the head twice, or quotes are not as RFC 4180 has them. After such a
            quote nobody knows where the next row begins, so nothing of the file is used.
    """
    csv.field_size_limit(LONGEST_FIELD)  # the limit on rows says more
    record = _Record(lines, name)
    reader = csv.reader(record, delimiter=separator, strict=True)
    head: list[str] | None = None
    while True:
        record.begin()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{name}, line {record.first}: a quoted field that begins in this row does not end as it should "
                f"(line {record.line}: {error}), at {quote(record.raw)}; close the quote, and double each quote "
                'inside a quoted field ("")'
            ) from error
        if fields is None:
            return
        if not fields:
            continue
        if head is None:
            head = _head(fields, name)
        elif len(fields) == len(head):
            yield CsvRow(record.first, {column: field for column, field in zip(head, fields, strict=True) if column})
        else:
            detail = f"line {record.first} has {len(fields)} fields, the head has {len(head)}"
            yield UnevenRow(record.first, record.raw.rstrip("\r\n"), detail)


class _Record:
    """The lines of a file, those of the current row kept."""

    def __init__(self, lines: Iterable[str], name: str) -> None:
        self._lines = iter(lines)
        self._name = name
        self._size = 0
        self._most = scaled(ROW_BYTES)
        self._kept: list[str] = []
        self.first = 1
        self.line = 0

    def begin(self) -> None:
        self.first = self.line + 1
        self._kept.clear()
        self._size = 0

    @property
    def raw(self) -> str:
        return "".join(self._kept)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.line += 1
        self._kept.append(line)
        self._size += len(line)
        if self._size > self._most:
            check(self._size, ROW_BYTES, self._name, f"the row that begins in line {self.first}")
        return line


def _head(names: list[str], file: str) -> list[str]:
    try:
        check_names(names)
    except KeyTwiceError as error:
        raise InputError(f"{file}: {error}") from error
    return names
