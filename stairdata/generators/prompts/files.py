"""Reading rows of other people's files: JSON, JSON Lines, CSV, TSV and Parquet, one or a folder, compressed or not."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats.bounded import COMPRESSIONS, lines, open_bytes
from stairdata_schemas.formats.csv_rows import UnevenRow, read_csv
from stairdata_schemas.formats.json_list import Duplicates, read_list
from stairdata_schemas.formats.limits import DOCUMENT_BYTES, check, check_json, scaled
from stairdata_schemas.formats.parquet import iterate_batches, open_parquet
from stairdata_schemas.formats.unique_keys import KeyTwiceError, loads

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 4096
# what pyarrow raises over such a value: its own exceptions are ValueError, KeyError and so on, too
_UNHOLDABLE = (ValueError, ArithmeticError, LookupError, TypeError, NotImplementedError, ImportError)
_ESCAPED = re.compile("[\udc80-\udcff]")  # what Python makes of bytes that are no UTF-8


class NotHeld(NamedTuple):
    """A value of a parquet file that Python has no type for, or none that is large enough."""

    arrow_type: str


class ClassName(str):
    """The name of a class that a file holds as a number, as `datasets` writes a ClassLabel."""

    number: int

    @classmethod
    def of(cls, number: Any, names: Sequence[str]) -> Any:
        """Return the name of a class; a number without one stays."""
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(names):
            return number
        name = cls(names[number])
        name.number = number
        return name


class BrokenRow(NamedTuple):
    """A row that could not be read at all."""

    rule: str
    raw: str
    detail: str = ""
    """Where in the file, and what is wrong."""


def read_rows(path: Path, wanted: Callable[[str], bool] | None = None) -> Iterator[Row | BrokenRow]:
    """Yield the rows of a file by its ending.

    Args:
        path: the file.
        wanted: says of a column's name whether it is needed; others of a parquet file are not read. None: all are.

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
        yield from _read_parquet(path, wanted) if _ending(path) == ".parquet" else reader(path)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    except KeyTwiceError as error:
        raise InputError(f"{path}: {error}") from error


class FolderFiles(NamedTuple):
    """What a folder holds."""

    taken: list[Path]
    left_out: list[str]
    """Other files, each with the reason."""


def files_of(path: Path, patterns: tuple[str, ...] = ()) -> list[Path]:
    """Return the files that a path means: itself, or those in a folder, sorted.

    Args:
        path: a file or a folder.
        patterns: where a folder's files lie; default: all of a known ending, however deep.

    Raises:
        InputError: a folder without such files, or one of `save_to_disk`; a pattern.
    """
    if not path.is_dir():
        if not path.exists() and any(sign in path.name for sign in "*?["):
            raise InputError(f"{path} is a pattern; name a folder, or each file as a source of its own")
        return [path]
    found = sorted({file for pattern in patterns for file in path.glob(pattern)}) or look_through(path).taken
    if not found:
        wanted = ", ".join(patterns or (f"*{ending}" for ending in _READERS))
        raise InputError(f"{path} can't be read: it is a folder without any of {wanted}")
    return found


def look_through(folder: Path) -> FolderFiles:
    """Look for files of a known ending, also in linked folders; hidden files and those of editors are left out.

    Raises:
        InputError: a folder of `save_to_disk`.
    """
    found, left_out, seen = [], [], set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= set(names):
            raise InputError(
                f"{place} is a folder of save_to_disk; write it as a file with Python: "
                f"datasets.load_from_disk({place!r}).to_parquet('prompts.parquet'), one for each split"
            )
        seen.add(os.path.realpath(place))
        left_out += [f"{Path(place, name).relative_to(folder)} (hidden)" for name in folders if name.startswith(".")]
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and os.path.realpath(Path(place, name)) not in seen
        ]
        for name in names:
            reason = _reason_against(Path(place, name))
            if reason is None:
                found.append(Path(place, name))
            else:
                left_out.append(f"{Path(place, name).relative_to(folder)} ({reason})")
    return FolderFiles(sorted(found), sorted(left_out))


def _reason_against(file: Path) -> str | None:
    if file.name.startswith("."):
        return "hidden"
    if file.name.startswith(("#", "~$")) or file.name.endswith(("~", "#")):
        return "an editor's copy"
    if not file.is_file():
        return "not a file"
    return None if _ending(file) in _READERS else "unknown extension"


def _ending(path: Path) -> str:
    """Return the ending that says the format, without that of a compression."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix in COMPRESSIONS and inner != ".parquet" else suffix


@contextlib.contextmanager
def _text(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a file as text; bytes that are no UTF-8 are escaped, see `_utf8`."""
    with open_bytes(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline) as file:
        yield file


def _utf8(text: Iterable[str], path: Path) -> Iterator[str]:
    """Yield the lines of a file that is UTF-8 throughout.

    Raises:
        InputError: it is not; the message says where.
    """
    offset = 0
    for number, line in enumerate(text, start=1):
        if line.isascii():
            offset += len(line)
        elif (escaped := _ESCAPED.search(line)) is not None:
            if number == 1:
                with open_bytes(path) as file:
                    start = file.read(3)
                if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise InputError(f"{path} can't be read: it is UTF-16, not utf-8; save it as UTF-8")
            with open_bytes(path) as file:
                offset += 3 if file.read(3) == codecs.BOM_UTF8 else 0
            offset += len(line[: escaped.start()].encode("utf-8", "surrogateescape"))
            before = quote(line[max(0, escaped.start() - 40) : escaped.start()])
            raise InputError(
                f"{path} can't be read: it is not utf-8 in line {number}, byte {offset} "
                f"(0x{ord(escaped[0]) - 0xDC00:02x}, counted from 0), after {before}; save it as UTF-8"
            )
        else:
            offset += len(line.encode("utf-8"))
        yield line


def _read_jsonl(path: Path) -> Iterator[Row | BrokenRow]:
    is_first = True
    with _text(path, newline="\n") as file:
        for number, line in enumerate(_utf8(lines(file, path), path), 1):
            if not line.strip():
                continue
            check_json(line, path, f"line {number}")
            row = _parse_line(line, number)
            if is_first and isinstance(row, BrokenRow) and line.lstrip().startswith("["):
                raise InputError(f"{path} is a JSON list, not one object a line; give it a name that ends in .json")
            is_first = False
            yield row


def _parse_line(line: str, number: int) -> Row | BrokenRow:
    try:
        value = loads(line, line=number)
    except (ValueError, RecursionError):
        return BrokenRow("not_json", line)
    return value if isinstance(value, dict) else BrokenRow("not_an_object", line)


def _read_json(path: Path) -> Iterator[Row | BrokenRow]:
    with _text(path, newline="\n") as file:
        most = scaled(DOCUMENT_BYTES)
        text = file.read(most + 1)
    if len(text) > most and text.lstrip().startswith("["):
        del text
        yield from _read_long_list(path)
        return
    check(len(text), DOCUMENT_BYTES, path, "one JSON document that is no list")
    check_json(text, path, "the document")
    try:
        text = "".join(_utf8(io.StringIO(text, newline="\n"), path))
        value = loads(text)
    except json.JSONDecodeError as error:
        if isinstance(_parse_line(text.lstrip().partition("\n")[0], 1), dict):
            raise InputError(f"{path} is JSON Lines, one object a line; give it a name that ends in .jsonl") from error
        raise InputError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    for item in _list_in(value, path):
        yield item if isinstance(item, dict) else BrokenRow("not_an_object", json.dumps(item))


def _read_long_list(path: Path) -> Iterator[Row | BrokenRow]:
    for number, item in enumerate(read_list(path), 1):
        if isinstance(item, Duplicates):
            raise InputError(f"{path}: element {number} has the key {quote(item.key)} twice; remove one")
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
        for row in read_csv(_utf8(lines(file, path), path), str(path), "\t" if _ending(path) == ".tsv" else ","):
            if isinstance(row, UnevenRow):
                yield BrokenRow("wrong_number_of_fields", row.raw, row.detail)
            else:
                yield {column: cell or None for column, cell in row.cells.items()}


def parquet_columns(path: Path) -> list[str]:
    """Return the names of a parquet file's columns.

    Raises:
        InputError: it is none.
    """
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def _read_parquet(path: Path, wanted: Callable[[str], bool] | None = None) -> Iterator[Row]:
    """Yield rows with the columns that are wanted.

    Not by way of polars: it has no types for some columns of parquet, and ends the process's thread over them.
    """
    with open_parquet(path) as file:
        schema = file.schema_arrow
    columns = [name for name in schema.names if wanted is None or wanted(name)]
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(f"{path} has two columns called {quote(twice[0])}; rename one")
    labels = _class_labels(schema)
    for batch in iterate_batches(path, ROWS_AT_ONCE, columns):
        values = [
            [ClassName.of(value, labels[name]) for value in _values(column)] if name in labels else _values(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        for place in range(batch.num_rows):
            yield {name: column[place] for name, column in zip(batch.schema.names, values, strict=True)}


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of classes by column, as `datasets` writes them beside a parquet file's schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: list(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # not written by datasets
        return {}


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values; those that Python can't hold, such as a date after the year 9999, by their type."""
    try:
        values: list[Any] = column.to_pylist()
    except _UNHOLDABLE:
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except _UNHOLDABLE:
        return NotHeld(str(scalar.type))


_READERS: dict[str, Callable[[Path], Iterator[Row | BrokenRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
