"""Tables of text as csv, xlsx and jsonl: what is written comes back exactly, and no cell is a formula.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula, also when a
person only edits it. Such a cell gets an apostrophe in front, and loses it when it is read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stairdata_schemas.errors import InputError, UsageError, quote
from stairdata_schemas.files import naming
from stairdata_schemas.formats.bounded import lines
from stairdata_schemas.formats.csv_rows import CsvRow, UnevenRow, read_csv
from stairdata_schemas.formats.limits import (
    ROW_BYTES,
    TABLE_BYTES,
    TABLE_CELLS,
    TooLargeError,
    check,
    check_json,
    scaled,
)
from stairdata_schemas.formats.unique_keys import KeyTwiceError, check_names, loads
from stairdata_schemas.formats.xlsx import check_xlsx

FORMATS = (".csv", ".xlsx", ".jsonl")
CELL_LIMIT = 32_767
"""UTF-16 units that a spreadsheet keeps of a cell."""
SHEET = "Review"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
_ESCAPED = re.compile(r"_x(?=(?:005F_x)*FFF[EF]_)")
_UNESCAPED = re.compile(r"_x((?:005F_x)*)(FFF[EF])_")

TextRow = dict[str, str]
"""Cells by column."""


def check_format(path: Path) -> str:
    """Return a file's format by its name.

    Raises:
        UsageError: another one.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{quote(path.name)} has to end in {', '.join(FORMATS)}")
    return suffix


def neutralise(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def restore(text: str) -> str:
    """Take that apostrophe off again."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA) else text


def shorten(text: str, suffix: str) -> str:
    """Cut a text that a cell can't hold, and say so."""
    if suffix == ".jsonl" or len(text.encode("utf-16-le")) // 2 < CELL_LIMIT:  # an apostrophe may come
        return text
    mark = f"\n[… cut; {len(text):,} characters stand in the dataset]"
    units = text.encode("utf-16-le")[: 2 * (CELL_LIMIT - 1 - len(mark))]
    return units.decode("utf-16-le", "ignore") + mark


def write_rows(
    path: Path, columns: Sequence[str], rows: Iterable[TextRow], choices: dict[str, list[str]], notes: str
) -> None:
    """Write a table.

    Args:
        path: .csv, .xlsx or .jsonl.
        columns: names, in order.
        rows: texts by name.
        choices: what may be answered in a column; a spreadsheet offers it.
        notes: guidelines: a sheet of their own in .xlsx, a file beside the others.
    """
    suffix = check_format(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            if suffix == ".xlsx":
                _write_xlsx(temporary, columns, rows, choices, notes)
            elif suffix == ".csv":
                _write_csv(temporary, columns, rows)
            else:
                _write_jsonl(temporary, columns, rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if suffix != ".xlsx":
        path.with_name(f"{path.stem}.guidelines.md").write_text(notes, encoding="utf-8")


def _write_jsonl(path: Path, columns: Sequence[str], rows: Iterable[TextRow]) -> None:
    lines = (json.dumps({name: row[name] for name in columns}, ensure_ascii=False) + "\n" for row in rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[TextRow]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # Excel takes UTF-8 only behind this mark
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        writer.writerows([neutralise(row[name]) for name in columns] for row in rows)


def _write_xlsx(
    path: Path, columns: Sequence[str], rows: Iterable[TextRow], choices: dict[str, list[str]], notes: str
) -> None:
    import xlsxwriter

    with xlsxwriter.Workbook(path) as book:
        wrapped = book.add_format({"text_wrap": True, "valign": "top"})
        bold = book.add_format({"bold": True, "valign": "top"})
        guidelines = book.add_worksheet("Guidelines")
        guidelines.set_column(0, 0, 120, wrapped)
        for number, line in enumerate(notes.removesuffix("\n").split("\n")):
            guidelines.write_string(number, 0, neutralise(line), wrapped)
        sheet = book.add_worksheet(SHEET)
        count = 0
        for count, row in enumerate(rows, 1):
            for place, name in enumerate(columns):
                sheet.write_string(count, place, _escape(neutralise(row[name])), wrapped)
        for place, name in enumerate(columns):
            sheet.write_string(0, place, name, bold)
            sheet.set_column(place, place, 12 if name in choices or name == "reviewer" else 40, wrapped)
            if name in choices and count:
                sheet.data_validation(1, place, count, place, {"validate": "list", "source": choices[name]})
        sheet.freeze_panes(1, 1)


def _escape(text: str) -> str:
    """Tell the words `_xFFFE_` and `_xFFFF_` from the characters that are written so, and never read back."""
    return _ESCAPED.sub("_x005F_x", text)


def _unescape(text: str) -> str:
    return _UNESCAPED.sub(
        lambda match: f"_x{match[1].removeprefix('005F_x')}{match[2]}_" if match[1] else chr(int(match[2], 16)), text
    )


def read_rows(path: Path) -> list[TextRow]:
    """Read a table; cells that are empty or missing are empty texts.

    Raises:
        InputError: it can't be read, or has no rows.
    """
    read = {".csv": _read_csv, ".xlsx": _read_xlsx, ".jsonl": _read_jsonl}[check_format(path)]
    try:
        if path.is_file():
            check(path.stat().st_size, TABLE_BYTES, path, "the file")
        rows = read(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}; save it as UTF-8") from error
    except KeyTwiceError as error:
        raise InputError(f"{path}: {error}") from error
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def _read_csv(path: Path) -> list[TextRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline(ROW_BYTES)
        file.seek(0)
        separator = max(",;\t", key=first.count)  # spreadsheets follow the country
        rows = []
        cells = 0
        for row in read_csv(lines(file, path), str(path), separator):
            cells += len(row.cells) if isinstance(row, CsvRow) else 1
            _check_cells(cells, path)
            rows.append(row)
    if uneven := next((row for row in rows if isinstance(row, UnevenRow)), None):
        raise InputError(f"{path}, {uneven.detail}: {quote(uneven.raw)}; put a text with {quote(separator)} in quotes")
    return [{name: restore(cell) for name, cell in row.cells.items()} for row in rows if isinstance(row, CsvRow)]


def _check_cells(cells: int, path: Path) -> None:
    if cells > scaled(TABLE_CELLS):
        raise TooLargeError(path, f"it has over {scaled(TABLE_CELLS)} cells, which is the limit")


def _read_xlsx(path: Path) -> list[TextRow]:
    import fastexcel

    if not path.is_file():
        raise FileNotFoundError(path)
    check_xlsx(path)
    try:
        book = fastexcel.read_excel(path)
        head = book.load_sheet(SHEET, header_row=None, n_rows=1, dtypes="string").to_polars()
        frame = book.load_sheet(SHEET, dtypes="string").to_polars()
    except fastexcel.FastExcelError as error:
        raise InputError(f"{path} can't be read: {quote(str(error))}; it needs a sheet {SHEET!r}") from error
    for names in head.iter_rows():  # fastexcel would give the second column of a name another one
        check_names([name or "" for name in names])
    return [{name: restore(_unescape(cell or "")) for name, cell in row.items()} for row in frame.iter_rows(named=True)]


def _read_jsonl(path: Path) -> list[TextRow]:
    rows = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:  # editors write a mark here too
        cells = 0
        for number, line in enumerate(lines(file, path), 1):
            if not line.strip():
                continue
            check_json(line, path, f"line {number}")
            try:
                row: Any = loads(line, line=number)
            except ValueError as error:
                raise InputError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} has to be an object, found {quote(row)}")
            cells += 1 + len(row)
            _check_cells(cells, path)
            rows.append({str(name): "" if cell is None else str(cell) for name, cell in row.items()})
    return rows
