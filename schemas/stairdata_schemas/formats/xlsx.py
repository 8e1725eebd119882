"""A check of spreadsheets (Office Open XML) before a library unpacks them: they are zip archives of XML.

A small one can expand without end in three ways: its parts are compressed, a long text is stored once and stands in
many cells by its number, and a lone cell far out makes the table as wide and long as a sheet can be.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from stairdata_schemas.errors import InputError
from stairdata_schemas.formats.limits import TABLE_BYTES, TABLE_CELLS, TooLargeError, check, scaled

_PIECE = 64 * 1024
_LOCAL_HEADER = 30
_PLACE = re.compile(r"([A-Z]{1,3})([0-9]{1,7})", re.ASCII)


def check_xlsx(path: Path) -> None:
    """Refuse a spreadsheet that becomes too large, without unpacking it into memory.

    Raises:
        TooLargeError: its parts, its texts or its tables are over `TABLE_BYTES` or `TABLE_CELLS`.
        InputError: it is no spreadsheet.
    """
    total = 0
    texts: list[int] = []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for part in sorted(archive.infolist(), key=lambda part: not _is_texts(part)):  # cells point into texts
                look = _Texts(texts, path) if _is_texts(part) else _Cells(texts, path)
                parser = _parser(look, path) if part.filename.lower().endswith(".xml") else None
                for piece in _unpacked(file, part):
                    total += len(piece)
                    check(total, TABLE_BYTES, path, "what it unpacks to")
                    if parser is not None:
                        parser.Parse(piece, False)
    except (zipfile.BadZipFile, zlib.error, expat.ExpatError, OSError, EOFError) as error:
        raise InputError(f"{path} can't be read: {error}; save it as .xlsx again") from error


def _is_texts(part: zipfile.ZipInfo) -> bool:
    return "sharedstrings" in part.filename.lower()


def _unpacked(file: Any, part: zipfile.ZipInfo) -> Iterator[bytes]:
    """Unpack a part, however long it says it is: readers unpack what is there."""
    file.seek(part.header_offset)
    head = file.read(_LOCAL_HEADER)
    file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
    left = part.compress_size
    inflate = zlib.decompressobj(-15) if part.compress_type == zipfile.ZIP_DEFLATED else None
    if inflate is None and part.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{part.filename} is compressed in an unusual way")
    while left > 0 and (packed := file.read(min(_PIECE, left))):
        left -= len(packed)
        if inflate is None:
            yield packed
            continue
        while packed:
            yield inflate.decompress(packed, _PIECE)
            packed = inflate.unconsumed_tail


class _Texts:
    """Measures the texts that cells name by number."""

    def __init__(self, texts: list[int], path: Path) -> None:
        self._texts = texts
        self._path = path

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        if name.rpartition(":")[2] == "si":
            self._texts.append(0)
            if len(self._texts) > scaled(TABLE_CELLS):
                raise TooLargeError(self._path, f"it has over {scaled(TABLE_CELLS)} texts, which is the limit")

    def end(self, _name: str) -> None:
        """Nothing ends with a text."""

    def text(self, text: str) -> None:
        if self._texts:
            self._texts[-1] += len(text)


class _Cells:
    """Measures what the cells of a sheet hold, and how far out they lie."""

    def __init__(self, texts: list[int], path: Path) -> None:
        self._texts = texts
        self._path = path
        self._size = self._cells = self._width = self._height = 0
        self._is_number = self._is_value = False
        self._value = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        kind = name.rpartition(":")[2]
        if kind == "c":
            self._cells += 1
            self._is_number = attributes.get("t") == "s"
            self._check(attributes.get("r", ""))
        elif kind == "v":
            self._is_value, self._value = True, ""

    def end(self, name: str) -> None:
        if name.rpartition(":")[2] != "v":
            return
        self._is_value = False
        if self._is_number and self._value.strip().isdecimal() and int(self._value) < len(self._texts):
            self._size += self._texts[int(self._value)]
            check(self._size, TABLE_BYTES, self._path, "the texts of its cells")

    def text(self, text: str) -> None:
        if self._is_value and len(self._value) < 16:
            self._value += text

    def _check(self, place: str) -> None:
        match = _PLACE.fullmatch(place)
        if match is not None:
            column = 0
            for letter in match[1]:
                column = 26 * column + ord(letter) - ord("A") + 1
            self._width, self._height = max(self._width, column), max(self._height, int(match[2]))
        cells = max(self._cells, self._width * self._height)
        if cells > scaled(TABLE_CELLS):
            most = scaled(TABLE_CELLS)
            raise TooLargeError(self._path, f"a sheet has {cells} cells up to its last one, over the limit of {most}")


def _parser(look: _Texts | _Cells, path: Path) -> expat.XMLParserType:
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: object) -> NoReturn:
        raise InputError(f"{path} can't be read: a part of it declares a document type; save it as .xlsx again")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = look.start
    parser.EndElementHandler = look.end
    parser.CharacterDataHandler = look.text
    return parser
