"""Reading rows of other people's files: JSON, JSONL, CSV and Parquet, one or a folder of them, compressed or not."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import iterate_frames
from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats.csv_rows import UnevenRow, read_csv
from stairdata_schemas.formats.unique_keys import KeyTwiceError, loads

_OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}


class BrokenRow(NamedTuple):
    """A row that could not be read at all."""

    rule: str
    raw: str
    detail: str = ""
    """Where in the file, and what is wrong."""


def read_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """Yield the rows of a file by its ending.

    Raises:
        InputError: missing, unreadable, empty, of an unknown ending, or broken as a whole.
    """
    reader = _READERS.get(_ending(path))
    if reader is None:
        raise InputError(f"{path}: unknown file extension {path.suffix!r}; use one of {', '.join(_READERS)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        yield from reader(path)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    except KeyTwiceError as error:
        raise InputError(f"{path}: {error}") from error


def files_of(path: Path, patterns: tuple[str, ...] = ()) -> list[Path]:
    """Return the files that a path means: itself, or those in a folder, sorted.

    Args:
        path: a file or a folder.
        patterns: where a folder's files lie; default: all of a known ending, however deep.

    Raises:
        InputError: a folder without such files.
    """
    if not path.is_dir():
        return [path]
    known = [file for file in path.rglob("*") if file.is_file() and _ending(file) in _READERS]
    found = sorted({file for pattern in patterns for file in path.glob(pattern)}) or sorted(known)
    if not found:
        wanted = ", ".join(patterns or (f"*{ending}" for ending in _READERS))
        raise InputError(f"{path} can't be read: it is a folder without any of {wanted}")
    return found


def _ending(path: Path) -> str:
    """Return the ending that says the format, without that of a compression."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix in _OPENERS and inner != ".parquet" else suffix


@contextlib.contextmanager
def _text(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    opener = _OPENERS.get(path.suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8-sig", newline=newline) as file:
        yield file


def _read_jsonl(path: Path) -> Iterator[Row | BrokenRow]:
    with _text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse_line(line, number)


def _parse_line(line: str, number: int) -> Row | BrokenRow:
    try:
        value = loads(line, line=number)
    except (ValueError, RecursionError):
        return BrokenRow("not_json", line)
    return value if isinstance(value, dict) else BrokenRow("not_an_object", line)


def _read_json(path: Path) -> Iterator[Row | BrokenRow]:
    try:
        with _text(path) as file:
            value = loads(file.read())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    for item in _list_in(value, path):
        yield item if isinstance(item, dict) else BrokenRow("not_an_object", json.dumps(item))


def _list_in(value: Any, path: Path) -> list[Any]:
    """Return the rows: the list itself, or the one list of objects that an object holds, as in {"data": [...]}."""
    if isinstance(value, list):
        return value
    inner = [each for each in value.values() if _is_rows(each)] if isinstance(value, dict) else []
    if len(inner) == 1:
        rows: list[Any] = inner[0]
        return rows
    several = f" (it holds {len(inner)} lists; leave one)" if inner else ""
    raise InputError(f"{path} has to be a list of objects, found {quote(value)}{several}")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _read_csv(path: Path) -> Iterator[Row | BrokenRow]:
    with _text(path, newline="") as file:
        for row in read_csv(file, str(path)):
            if isinstance(row, UnevenRow):
                yield BrokenRow("wrong_number_of_fields", row.raw, row.detail)
            else:
                yield {column: cell or None for column, cell in row.cells.items()}


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    try:
        for frame in iterate_frames(path):
            yield from frame.iter_rows(named=True)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row | BrokenRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
