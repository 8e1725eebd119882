"""Parquet files read in pieces whose decoded size is known before they are decoded.

A parquet file expands in three ways: pages are compressed, values stand in a dictionary once and are repeated by
number, and runs of equal numbers or nulls take no space at all. The footer says how large all of that gets, and may
lie; the readers go by the header of each page (https://parquet.apache.org/docs/file-format/data-pages/), and so does
this module. It walks the headers, looks at the lengths of values in dictionaries, and refuses what is over a limit
of `stairdata_schemas.formats.limits` before a reader decompresses it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from stairdata_schemas.errors import InputError, quote
from stairdata_schemas.formats import limits
from stairdata_schemas.formats.limits import TooLargeError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PIECE_BYTES = 8 * 1024**2
"""Of rows that are read at a time, decoded."""
_MAGIC = b"PAR1"
_OLD_WRITERS = 100
"""Bytes after a column's end in which readers still look for pages, because of writers that forgot a header."""
_USUAL_HEADER = 512
_SIZES = {1: 0, 2: 0, 3: 1, 7: 8}
"""Of Thrift's types that have one; a boolean field is its type."""
_MOST_READ = 32 * 1024**2
"""Values that are looked at one by one."""
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = 0, 2, 3
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
"""Of Arrow, by their number in a footer; 0 is none at all."""
_BY_DICTIONARY = frozenset({2, 8})  # PLAIN_DICTIONARY, RLE_DICTIONARY
_BY_PREFIX = 7  # DELTA_BYTE_ARRAY
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


class DamagedError(InputError):
    """What should be parquet is none.

    Attributes:
        what: what is wrong, without the name of the file.
    """

    def __init__(self, what: str, name: object = None) -> None:
        self.what = what
        super().__init__(what if name is None else f"{name}: {what}; get a complete file")


# -- Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md) ----


class _Thrift:
    """Reads just enough of a message: integers by the number of their field, all else is passed over."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def varint(self) -> int:
        data, at, shift, value = self.data, self.at, 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self.at = at
                return value
            shift += 7
            if shift > 63:
                raise DamagedError("a number in it has more than 64 bits")

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield (number, type) of the fields of a struct; whoever asks reads or skips each."""
        last = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            if byte == 0:
                return
            number = last + (byte >> 4) if byte >> 4 else self.integer()
            if number <= last:  # readers differ in which of two they take
                raise DamagedError("a field in it stands twice")
            last = number
            yield number, byte & 0x0F

    def items(self) -> tuple[int, int]:
        """Read the head of a list: how many, and of which type."""
        byte = self.data[self.at]
        self.at += 1
        count = byte >> 4
        return (self.varint() if count == 15 else count), byte & 0x0F

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value of a type; an IndexError says that it goes on behind the data."""
        if depth > limits.FOOTER_DEPTH:
            raise DamagedError("its footer or a header is nested too deep")
        if kind in _SIZES:
            self.at += _SIZES[kind]
        elif kind in {4, 5, 6, 8}:
            number = self.varint()
            self.at += number if kind == 8 else 0
        elif kind in {9, 10}:
            count, inner = self.items()
            for _ in range(count):
                self._skip_item(inner, depth)
        elif kind == 11:
            self._skip_map(depth)
        elif kind == 12:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        else:
            raise DamagedError(f"it holds a value of the unknown type {kind}")
        if self.at > len(self.data):
            raise IndexError

    def _skip_map(self, depth: int) -> None:
        count = self.varint()
        if not count:
            return
        kinds = self.data[self.at]
        self.at += 1
        for _ in range(count):
            self._skip_item(kinds >> 4, depth)
            self._skip_item(kinds & 0x0F, depth)

    def _skip_item(self, kind: int, depth: int) -> None:
        if kind in {1, 2}:
            self.at += 1
            if self.at > len(self.data):
                raise IndexError
        else:
            self.skip(kind, depth + 1)


class _Page(NamedTuple):
    """The header of a page."""

    kind: int
    size: int
    """Of its content, decompressed."""
    packed: int
    """Of its content, as it stands in the file."""
    values: int
    encoding: int
    levels: int
    """Bytes in front of the values that are never compressed."""
    header: int
    """Bytes of the header itself."""


def _page(data: bytes) -> _Page:
    """Read the header of a page; an IndexError says that it goes on behind these bytes."""
    thrift = _Thrift(data)
    found: dict[int, int] = {}
    values = encoding = levels = 0
    for number, kind in thrift.fields():
        if number in {1, 2, 3} and kind in {4, 5, 6}:
            found[number] = thrift.integer()
        elif number in {5, 7, 8} and kind == 12:  # of data, of a dictionary, of data in version 2
            for inner, inner_kind in thrift.fields():
                if inner_kind in {4, 5, 6}:
                    value = thrift.integer()
                    values = value if inner == 1 else values
                    encoding = value if inner == (4 if number == 8 else 2) else encoding
                    levels += value if number == 8 and inner in {5, 6} else 0
                else:
                    thrift.skip(inner_kind)
        else:
            thrift.skip(kind)
    if len(found) < 3 or min(*found.values(), values, levels) < 0:
        raise DamagedError("the header of a page in it is damaged")
    return _Page(found[1], found[2], found[3], values, encoding, levels, thrift.at)


# -- the footer ------------------------------------------------------------------------------------------------


class ColumnChunk(NamedTuple):
    """What a footer says of one column in one row group."""

    begin: int
    """Where its first page stands in the file."""
    packed: int
    """Bytes of its pages in the file."""
    values: int
    codec: int
    """The number of the compression; 0 is none."""
    nulls: int | None
    """None where the footer doesn't count them."""


class RowGroupEntry(NamedTuple):
    """What a footer says of one row group."""

    rows: int
    chunks: list[ColumnChunk]
    """In the order of the schema's leaves."""


def row_group_entries(path: Path, leaves: int) -> list[RowGroupEntry]:
    """Read what the footer of a file says of its row groups.

    Not by way of pyarrow, whose `RowGroupMetaData.column` ends the process over statistics that contradict the schema:
    the C++ exception passes through it.

    Args:
        path: the file.
        leaves: columns that each row group has to have.

    Raises:
        TooLargeError: the footer is over a limit.
        DamagedError: it is no parquet.
    """
    with path.open("rb") as file:
        check_footer(file, path)
        end = file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(end - length)
        thrift = _Thrift(file.read(length))
    try:
        found: list[RowGroupEntry] = []
        for number, kind in thrift.fields():
            if (number, kind) == (4, 9):
                found = [_row_group_entry(thrift) for _ in range(_structs(thrift))]
            else:
                thrift.skip(kind)
        if any(len(group.chunks) != leaves for group in found):
            raise DamagedError("a row group in it has other columns than its schema")
        return found
    except IndexError:
        raise DamagedError("it is not a parquet file: its footer is cut", path) from None
    except DamagedError as error:
        raise DamagedError(f"it is not a parquet file: {error}", path) from None


def _structs(thrift: _Thrift) -> int:
    """Read the head of a list of structs; return how many there are."""
    count, inner = thrift.items()
    if count and inner != 12:
        raise DamagedError("a list in it holds something else than it should")
    return count


def _row_group_entry(thrift: _Thrift) -> RowGroupEntry:
    chunks: list[ColumnChunk] = []
    rows = 0
    for number, kind in thrift.fields():
        if (number, kind) == (1, 9):
            chunks = [_column_chunk(thrift) for _ in range(_structs(thrift))]
        elif (number, kind) == (3, 6):
            rows = thrift.integer()
        else:
            thrift.skip(kind)
    return RowGroupEntry(rows, chunks)


def _column_chunk(thrift: _Thrift) -> ColumnChunk:
    chunk = None
    for number, kind in thrift.fields():
        if (number, kind) == (3, 12):
            chunk = _column_metadata(thrift)
        else:
            thrift.skip(kind)
    if chunk is None:
        raise DamagedError("its footer says nothing of a column")
    return chunk


def _column_metadata(thrift: _Thrift) -> ColumnChunk:
    found: dict[int, int] = {}
    nulls = None
    for number, kind in thrift.fields():
        if (number, kind) in {(4, 5), (5, 6), (7, 6), (9, 6), (11, 6)}:
            found[number] = thrift.integer()
        elif (number, kind) == (12, 12):  # statistics
            nulls = _integer_in(thrift, 3)
        else:
            thrift.skip(kind)
    if not {4, 5, 7, 9} <= found.keys() or min(found[5], found[7], found[9]) < 0:
        raise DamagedError("what its footer says of a column is damaged")
    begin, dictionary = found[9], found.get(11, 0)
    return ColumnChunk(dictionary if 0 < dictionary < begin else begin, found[7], found[5], found[4], nulls)


def _integer_in(thrift: _Thrift, wanted: int) -> int | None:
    """Read one field of a struct."""
    value = None
    for number, kind in thrift.fields():
        if (number, kind) == (wanted, 6):
            value = thrift.integer()
        else:
            thrift.skip(kind)
    return value


# -- a file ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Chunk:
    """What the pages of one column in one row group decode to."""

    column: ColumnChunk
    leaf: Any
    plain: int = 0
    """Bytes of pages, without what a dictionary repeats; `VALUE_OVERHEAD` included."""
    page: int = 0
    """Bytes of the largest page."""
    dictionary: _Page | None = None
    content: int = 0
    """Where the content of the dictionary begins."""
    repeated: int = 0
    """Values that stand in the dictionary."""
    largest: int = 0
    """Bytes of the largest value in the dictionary; an upper bound."""
    repeats: int = 0
    """Bytes of the repeated values; an upper bound."""
    dense: float = 0.0
    """Bytes per value in the page where that is most, without what a dictionary repeats."""

    @property
    def size(self) -> int:
        return self.plain + self.repeats

    def take_largest(self, largest: int) -> None:
        """Bound the repeated values by the largest value."""
        self.largest = largest
        self.repeats = self.repeated * largest


class RowGroup(NamedTuple):
    """What a row group decodes to."""

    rows: int
    pages: int
    """Bytes of its pages, decompressed."""
    size: int
    """Bytes decoded, an upper bound; exact enough where it is over `ROW_GROUP_BYTES`."""
    nested: int
    """Bytes of its lists among them."""
    densest: float
    """Bytes per row, where that is most."""
    field: str
    """That most of it belongs to."""


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a parquet file whose footer is not over a limit.

    Args:
        path: the file.
        options: of `pyarrow.parquet.ParquetFile`.

    Raises:
        TooLargeError: the footer is over a limit.
        DamagedError: it is no parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            check_footer(file, path)
        # pre_buffer would hold a row group several times over; without a buffer a column of one is held, which is
        # half as fast again and too much only in large files
        buffer = 1024**2 if path.stat().st_size > limits.EXPANSION_FLOOR else 0
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=buffer, **options) as opened:
            yield opened
    except UnicodeDecodeError as error:
        raise DamagedError(f"a name or a text in it is not UTF-8: {error}", path) from error
    except pa.ArrowException as error:
        raise DamagedError(f"it is not a parquet file: {error}", path) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedError(f"it can't be read: {error}", path) from error  # of a page


def check_footer(file: IO[bytes], name: object) -> None:
    """Refuse a footer that is huge, or a schema of very many or deeply nested fields, before it is read whole.

    Raises:
        TooLargeError: it is over a limit.
        DamagedError: there is none.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if end < 12 or tail[4:] != _MAGIC or length > end - 12:
        raise DamagedError("it is not a parquet file: it does not end as one does", name)
    limits.check(length, limits.FOOTER_BYTES, name, "the footer")
    file.seek(end - 8 - length)
    try:
        _check_schema(_Thrift(file.read(length)), name)
    except IndexError:
        raise DamagedError("it is not a parquet file: its footer is cut", name) from None
    except DamagedError as error:
        raise DamagedError(f"it is not a parquet file: {error}", name) from None


def _check_schema(thrift: _Thrift, name: object) -> None:
    """Walk the schema, which stands first in a footer: each element says how many children follow it."""
    for number, kind in thrift.fields():
        if number != 2 or kind != 9:
            thrift.skip(kind)
            continue
        count, _ = thrift.items()
        if count > limits.scaled(limits.FOOTER_FIELDS):
            most = limits.scaled(limits.FOOTER_FIELDS)
            raise TooLargeError(name, f"it has {count} columns and fields, over the limit of {most}")
        open_: list[int] = []
        for _ in range(count):
            while open_ and not open_[-1]:
                open_.pop()
            if open_:
                open_[-1] -= 1
            children = 0
            for inner, inner_kind in thrift.fields():
                if inner == 5 and inner_kind == 5:
                    children = thrift.integer()
                else:
                    thrift.skip(inner_kind)
            open_.append(max(0, children))
            if len(open_) > limits.FOOTER_DEPTH:
                most = limits.FOOTER_DEPTH
                raise TooLargeError(name, f"its columns are nested deeper than the limit of {most}")
        return


def measure(path: Path, columns: Collection[str] | None = None) -> list[RowGroup]:
    """Tell what each row group decodes to, by its pages.

    Args:
        path: the file.
        columns: names of those that will be read, or of leaves as in `nodes.list.element.step`; None: all.

    Raises:
        TooLargeError: a page, a dictionary, a value or the whole is over a limit.
        DamagedError: it is no parquet.
    """
    state = path.stat()
    key = (state.st_ino, state.st_size, state.st_mtime_ns, os.environ.get(limits.VARIABLE))
    return list(_measured(path.absolute(), None if columns is None else frozenset(columns), key))


@lru_cache(maxsize=1024)
def _measured(path: Path, columns: frozenset[str] | None, _state: tuple[Any, ...]) -> tuple[RowGroup, ...]:
    with open_parquet(path) as opened, path.open("rb") as file:
        return tuple(_Survey(file, path, opened, columns).row_groups())


class _Survey:
    """The walk over the pages of a file."""

    def __init__(self, file: IO[bytes], path: Path, opened: pq.ParquetFile, columns: Collection[str] | None) -> None:
        self._file = file
        self._path = path
        self._opened = opened
        self._entries = row_group_entries(path, len(opened.schema))
        schema = opened.schema
        self._leaves = [
            (index, schema.column(index))
            for index in range(len(schema))
            if columns is None or {(leaf := schema.column(index).path), leaf.split(".")[0]} & set(columns)
        ]
        self._size = os.fstat(file.fileno()).st_size
        self._most = limits.largest_expansion(self._size)
        self._pages = 0
        self._most_pages = limits.scaled(limits.PAGES)
        self._page_limit = limits.scaled(limits.PAGE_BYTES)
        self._value_limit = limits.scaled(limits.VALUE_BYTES)

    def row_groups(self) -> Iterator[RowGroup]:
        total, first = 0, 1
        for number in range(len(self._entries)):
            group = self._row_group(number, first, self._most - total)
            yield group
            total += group.size
            if total > self._most:
                where = f"{_rows(first, group.rows)}, field {quote(group.field)}"
                most = limits.size(self._most)
                raise TooLargeError(self._path, f"{where}: decoded over {most}, the limit for the file's size on disk")
            first += group.rows

    def _row_group(self, number: int, first: int, left: int) -> RowGroup:
        """Add up a row group, as exactly as it takes to see that it is small, and that it leaves enough for others."""
        rows, columns = self._entries[number]
        chunks = [self._chunk(_Chunk(columns[index], leaf), first, rows) for index, leaf in self._leaves]
        groups = len(self._entries)
        enough = min(limits.scaled(limits.ROW_GROUP_BYTES), left // max(1, groups - number))
        for narrow in (self._by_largest, self._by_reading):
            for chunk in sorted(chunks, key=lambda chunk: chunk.repeats, reverse=True):
                if sum(each.size for each in chunks) <= enough or not chunk.repeats:
                    break
                narrow(chunk, number)
        held = sum(chunk.page + (chunk.dictionary.size if chunk.dictionary else 0) for chunk in chunks)
        what = f"{_rows(first, rows)}: pages that are read together"
        limits.check(held, 2 * limits.PAGE_BYTES, self._path, what)
        nested = [chunk for chunk in chunks if chunk.leaf.max_repetition_level]
        densest = sum(
            chunk.size / max(rows, 1) if chunk.leaf.max_repetition_level else chunk.dense + chunk.largest
            for chunk in chunks
        )
        pages = sum(chunk.plain for chunk in chunks)
        size = sum(chunk.size for chunk in chunks)
        largest = max(chunks, key=lambda chunk: chunk.size, default=None)
        field = largest.leaf.path if largest else ""
        return RowGroup(rows, pages, size, sum(chunk.size for chunk in nested), densest, field)

    def _chunk(self, found: _Chunk, first: int, rows: int) -> _Chunk:
        """Add up the pages of a column; `first` and `rows` say which rows it holds, for messages."""
        column, leaf, seen = found.column, found.leaf, 0
        at = column.begin
        end = at + column.packed
        total, width = column.values, _WIDTHS.get(leaf.physical_type, 0)
        while at < end or (seen < total and at < end + _OLD_WRITERS):
            page = self._page(at)
            if page is None:
                break
            content, at = at + page.header, at + page.header + page.packed
            if page.kind == _DICTIONARY_PAGE:
                self._take_dictionary(found, page, content, f"{_rows(first, rows)}, field ")
            elif page.kind in {_DATA_PAGE, _DATA_PAGE_2}:
                self._check_page(page, leaf, (first, rows, seen))
                found.page = max(found.page, page.size)
                size = max(page.size, page.values * width)
                if page.encoding in _BY_DICTIONARY:
                    found.repeated += page.values
                elif page.encoding == _BY_PREFIX:
                    size += self._prefixes(page, content, column, leaf)
                size += limits.VALUE_OVERHEAD * page.values
                found.plain += size
                found.dense = max(found.dense, size / max(page.values, 1))
                seen += page.values
        if found.dictionary is not None:
            found.take_largest(found.dictionary.size if leaf.physical_type == "BYTE_ARRAY" else width or leaf.length)
        return found

    def _take_dictionary(self, found: _Chunk, page: _Page, content: int, where: str) -> None:
        what = f"{where}{quote(found.leaf.path)}: a dictionary"
        limits.check(page.size, limits.DICTIONARY_BYTES, self._path, what)
        if found.dictionary is not None:
            raise DamagedError("it is damaged: a column of it has two dictionaries", self._path)
        found.dictionary, found.content = page, content
        found.plain += page.size + limits.VALUE_OVERHEAD * page.values

    def _check_page(self, page: _Page, leaf: Any, place: tuple[int, int, int]) -> None:
        if page.size <= (self._page_limit if page.values > 1 else self._value_limit + limits.KIBIBYTE):
            return  # levels take some bytes beside a value
        first, rows, seen = place  # rows of a column without lists are its values
        where = _rows(first, rows) if leaf.max_repetition_level else _rows(first + seen, page.values)
        what = f"{where}, field {quote(leaf.path)}" + (": a page" if page.values > 1 else "")
        limit = limits.PAGE_BYTES if page.values > 1 else limits.VALUE_BYTES
        limits.check(page.size, limit, self._path, what)

    def _page(self, at: int) -> _Page | None:
        """Read the header of the page that begins there; None at the end of the file."""
        self._pages += 1
        if self._pages > self._most_pages:
            raise TooLargeError(self._path, f"it has over {self._most_pages} pages, which is the limit")
        if at >= self._size:
            return None
        for length in (_USUAL_HEADER, limits.NOTE_BYTES):  # statistics stand in it, with values in full
            self._file.seek(at)
            data = self._file.read(length)
            try:
                return _page(data)
            except IndexError:
                if len(data) < length:
                    return None
            except DamagedError as error:
                raise DamagedError(f"it is damaged: {error}", self._path) from None
        raise TooLargeError(self._path, f"the header of a page is over the limit of {limits.size(limits.NOTE_BYTES)}")

    def _content(self, page: _Page, at: int, column: ColumnChunk) -> Any:
        """Return the content of a small page; None where it can't be unpacked here."""
        import pyarrow as pa

        self._file.seek(at)
        packed = self._file.read(page.packed)
        levels = packed[: page.levels]  # never packed
        if column.codec == 0:
            return packed
        try:
            codec = pa.Codec(_CODECS.get(column.codec, ""))
            content = codec.decompress(memoryview(packed)[page.levels :], page.size - page.levels)
            return levels + bytes(content) if levels else memoryview(content).cast("B")
        except (pa.ArrowException, ValueError, OSError):
            return None

    def _by_largest(self, chunk: _Chunk, _number: int) -> None:
        """Bound what a dictionary repeats by its largest value."""
        if chunk.dictionary is None or chunk.leaf.physical_type != "BYTE_ARRAY":
            return
        content = self._content(chunk.dictionary, chunk.content, chunk.column)
        if content is None:
            return
        place, largest, end = 0, 0, len(content) - 4
        length_at = struct.Struct("<I").unpack_from
        while place <= end:
            length = length_at(content, place)[0]
            largest = max(largest, length)
            place += 4 + length
        chunk.take_largest(min(largest, chunk.dictionary.size))

    def _by_reading(self, chunk: _Chunk, number: int) -> None:
        """Add up the values that are repeated out of a dictionary, without repeating them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if chunk.leaf.physical_type != "BYTE_ARRAY" or chunk.repeated > limits.scaled(_MOST_READ):
            return
        total, leaf = 0, chunk.leaf.path
        with open_parquet(self._path, read_dictionary=[leaf]) as opened:
            for batch in opened.iter_batches(batch_size=4096, row_groups=[number], columns=[leaf]):
                values: Any = batch.column(0)
                while not pa.types.is_dictionary(values.type):
                    if not pa.types.is_nested(values.type):
                        return
                    inner = values.flatten()
                    values = inner[0] if isinstance(inner, list) else inner
                lengths = pc.binary_length(values.dictionary.cast(pa.large_binary()))
                total += pc.sum(lengths.take(values.indices)).as_py() or 0
        chunk.repeats = total

    def _prefixes(self, page: _Page, at: int, column: ColumnChunk, leaf: Any) -> int:
        """Add up the bytes that values share with the value before them (DELTA_BYTE_ARRAY), an upper bound."""
        content = self._content(page, at, column)
        if content is None:
            return page.values * page.size
        start = page.levels
        if page.kind == _DATA_PAGE:  # each kind of level begins with its length
            for level in (leaf.max_repetition_level, leaf.max_definition_level):
                start += 4 + int.from_bytes(content[start : start + 4], "little") if level else 0
        try:
            return _sum_of_deltas(content[start:], page.values)
        except (IndexError, ValueError, DamagedError):
            return page.values * page.size


def _sum_of_deltas(data: bytes, most: int) -> int:
    """Add up the numbers of a block of DELTA_BINARY_PACKED.

    Raises:
        DamagedError: more than `most` numbers, or negative ones.
    """
    import numpy as np

    thrift = _Thrift(data)
    block, parts, count, value = thrift.varint(), thrift.varint(), thrift.varint(), thrift.integer()
    if count > most or not parts or block // parts > 2**16 or value < 0:
        raise DamagedError("lengths in it are damaged")
    size, total, left = block // parts, value, count - 1
    while left > 0:
        least = thrift.integer()
        widths = data[thrift.at : thrift.at + parts]
        thrift.at += parts
        for width in widths:
            if left <= 0:
                break
            piece = np.frombuffer(data, np.uint8, size * width // 8, thrift.at)
            thrift.at += len(piece)
            bits = np.unpackbits(piece, bitorder="little").reshape(size, width).astype(np.int64)
            deltas = (bits @ (1 << np.arange(width, dtype=np.int64)))[:left] + least
            values = value + np.cumsum(deltas)
            if values.min() < 0:
                raise DamagedError("lengths in it are damaged")
            total, value, left = total + int(values.sum()), int(values[-1]), left - len(deltas)
    return total


def _rows(first: int, count: int) -> str:
    return f"row {first}" if count <= 1 else f"rows {first} to {first + count - 1}"


# -- reading ---------------------------------------------------------------------------------------------------


def check_artifact_files(paths: Sequence[Path]) -> None:
    """Refuse data files of an artifact that hold more than a reader of whole row groups can take.

    Raises:
        TooLargeError: a value, a page, a row group or a file is over its limit.
        DamagedError: one is no parquet.
    """
    for path in paths:
        if not path.is_file():
            continue  # the reader says so
        first = 1
        for group in measure(path):
            what = f"{_rows(first, group.rows)}, most of it field {quote(group.field)}, decoded"
            limits.check(group.size, limits.ROW_GROUP_BYTES, path, what)
            first += group.rows


def iterate_batches(
    path: Path, rows: int = 4096, columns: Sequence[str] | None = None, *, piece: int = PIECE_BYTES
) -> Iterator[pa.RecordBatch]:
    """Read a parquet file in pieces of about 8 MB decoded, and at most that many rows.

    Args:
        path: the file.
        rows: most rows of a piece.
        columns: names of columns, or of leaves; None: all.
        piece: bytes of a piece, decoded.

    Raises:
        TooLargeError: a value, named by row and field, a page or the whole is over its limit.
        DamagedError: it is no parquet.
    """
    groups = measure(path, columns)
    first = 1
    for group in groups:
        what = f"{_rows(first, group.rows)}, lists in one row group"
        limits.check(group.nested, limits.NESTED_GROUP_BYTES, path, what)
        first += group.rows
    fitting = _fitting(groups, piece)
    first, largest = 1, limits.scaled(limits.VALUE_BYTES)
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=max(1, min(rows, fitting)), columns=columns):
            if batch.nbytes > largest:  # else no value can be over it
                _check_values(batch, first, path)
            yield batch
            first += batch.num_rows


def _fitting(groups: Sequence[RowGroup], piece: int) -> int:
    """Return how many rows make a piece: by their mean, or where a row group alone is too large, by the largest."""
    pages, rows = sum(group.pages for group in groups), sum(group.rows for group in groups)
    usual = piece * rows // max(pages, 1)
    large = [group.densest for group in groups if group.size > limits.scaled(limits.ROW_GROUP_BYTES)]
    return min(usual, int(8 * PIECE_BYTES / max(1.0, *large))) if large else usual


def _check_values(batch: pa.RecordBatch, first: int, path: Path) -> None:
    import pyarrow.compute as pc

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for leaf, values, parents in _texts(column, name):
            lengths = pc.binary_length(values)
            largest = pc.max(lengths).as_py() or 0
            if largest > limits.scaled(limits.VALUE_BYTES):
                place = pc.index(lengths, largest).as_py()
                for parent in reversed(parents):
                    place = parent[place].as_py()
                limits.check(largest, limits.VALUE_BYTES, path, f"row {first + place}, field {quote(leaf)}")


def _texts(values: Any, name: str, parents: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yield the texts in a column: name, values, and, for each list around them, the places of its values' owners."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_dictionary(kind):
        yield from _texts(values.dictionary, name, ())
    elif (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    ):
        yield name, values, parents
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from _texts(values.field(number), f"{name}.{kind.field(number).name}", parents)
    elif pa.types.is_map(kind):
        entries = pc.list_parent_indices(values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
        yield from _texts(values.keys, name, (*parents, entries))
        yield from _texts(values.items, name, (*parents, entries))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _texts(values.flatten(), name, (*parents, pc.list_parent_indices(values)))
