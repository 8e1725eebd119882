"""Parquet files that say one thing and hold another: made out of honest small ones, by hand, in little memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stairdata_schemas import identity
from stairdata_schemas.kinds import arrow_schema, polars_schema

PROMPT = 1
"""Place of the column `prompt` among those of prompts."""
Struct = dict[int, tuple[int, Any]]
"""Of Thrift's compact protocol: number of a field to its type and value."""


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _zigzag(value: int) -> bytes:
    return _varint((value << 1) ^ (value >> 63))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def value(self, kind: int, *, is_item: bool = False) -> Any:  # noqa: PLR0911 - a type, a return
        if kind in {1, 2}:
            return self.byte() if is_item else kind
        if kind == 3:
            return self.byte()
        if kind in {4, 5, 6}:
            raw = self.varint()
            return (raw >> 1) ^ -(raw & 1)
        if kind == 7:
            self.at += 8
            return self.data[self.at - 8 : self.at]
        if kind == 8:
            length = self.varint()
            self.at += length
            return self.data[self.at - length : self.at]
        if kind in {9, 10}:
            head = self.byte()
            count = self.varint() if head >> 4 == 15 else head >> 4
            return head & 15, [self.value(head & 15, is_item=True) for _ in range(count)]
        assert kind == 12
        return self.struct()

    def struct(self) -> Struct:
        found: Struct = {}
        last = 0
        while head := self.byte():
            last = last + (head >> 4) if head >> 4 else self.value(5)
            found[last] = head & 15, self.value(head & 15)
        return found


def _write(kind: int, value: Any, *, is_item: bool = False) -> bytes:  # noqa: PLR0911 - a type, a return
    if kind in {1, 2}:
        return bytes([value]) if is_item else b""
    if kind == 3:
        return bytes([value])
    if kind in {4, 5, 6}:
        return _zigzag(value)
    if kind == 7:
        return bytes(value)
    if kind == 8:
        return _varint(len(value)) + bytes(value)
    if kind in {9, 10}:
        inner, items = value
        head = bytes([len(items) << 4 | inner]) if len(items) < 15 else bytes([0xF0 | inner]) + _varint(len(items))
        return head + b"".join(_write(inner, item, is_item=True) for item in items)
    return write_struct(value)


def write_struct(fields: Struct) -> bytes:
    found, last = b"", 0
    for number, (kind, value) in sorted(fields.items()):
        step = number - last
        found += bytes([step << 4 | kind]) if step < 16 else bytes([kind]) + _zigzag(number)
        found += _write(kind, value)
        last = number
    return found + b"\0"


class Page(NamedTuple):
    """A data page as it is to stand in the file."""

    content: bytes
    """Compressed."""
    size: int
    """What its header says that it decompresses to."""
    values: int
    encoding: int = 0


def _header(page: Page) -> bytes:
    data: Struct = {1: (5, page.values), 2: (5, page.encoding), 3: (5, 3), 4: (5, 3)}
    return write_struct({1: (5, 0), 2: (5, page.size), 3: (5, len(page.content)), 5: (12, data)})


def footer_of(data: bytes) -> Struct:
    length = int.from_bytes(data[-8:-4], "little")
    return _Reader(data[-8 - length : -8]).struct()


def assemble(body: bytes, footer: Struct) -> bytes:
    raw = write_struct(footer)
    return body + raw + len(raw).to_bytes(4, "little") + b"PAR1"


def body_of(data: bytes) -> bytes:
    return data[: -8 - int.from_bytes(data[-8:-4], "little")]


def replace_column(data: bytes, column: int, pages: list[Page], *, rows: int, codec: int = 6) -> bytes:
    """Give a column of the only row group other pages; codec 6 is zstd, 2 gzip, 1 snappy."""
    body, footer = body_of(data), footer_of(data)
    group = footer[4][1][1][0]
    chunk: Struct = group[1][1][1][column][3][1]
    raw = b"".join(_header(page) + page.content for page in pages)
    values = sum(page.values for page in pages)
    chunk |= {4: (5, codec), 5: (6, values), 6: (6, 1), 7: (6, len(raw)), 9: (6, len(body))}
    for optional in (11, 12, 13, 16):  # place of a dictionary, statistics, encodings, sizes
        chunk.pop(optional, None)
    footer[3] = group[3] = (6, rows)
    return assemble(body + raw, footer)


def honest(folder: Path, *prompts: str, **options: Any) -> bytes:
    """Return a file of prompts as an artifact has it."""
    frame = pl.DataFrame(
        [{"prompt_id": identity.prompt_id(text), "prompt": text, "task": "safety", "source": "x"} for text in prompts],
        schema=polars_schema("prompts"),
    )
    path = folder / "honest.parquet"
    table = frame.to_arrow().cast(arrow_schema("prompts"))
    pq.write_table(table, path, **({"compression": "zstd", "use_dictionary": False} | options))
    data = path.read_bytes()
    path.unlink()
    return data


def _levels(values: int, level: int = 1) -> bytes:
    """Say of so many values that they are there, or with level 0 that they are null."""
    run = _varint(values << 1) + bytes([level])
    return len(run).to_bytes(4, "little") + run


def _pieces(size: int) -> Iterator[bytes]:
    """Yield the content of a page with one value of that many bytes."""
    yield _levels(1) + size.to_bytes(4, "little")
    piece = b"a" * 2**20
    for start in range(0, size, len(piece)):
        yield piece[: size - start]


def packed_zstd(pieces: Iterator[bytes]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        for piece in pieces:
            packed.write(piece)
    return bytes(sink.getvalue())


def packed_gzip(pieces: Iterator[bytes]) -> bytes:
    pack = zlib.compressobj(wbits=31)
    return b"".join(pack.compress(piece) for piece in pieces) + pack.flush()


def huge_value(folder: Path, size: int = 2**30) -> bytes:
    """One prompt of a gigabyte, in a file of some 35 KB."""
    return replace_column(honest(folder, "?"), PROMPT, [Page(packed_zstd(_pieces(size)), size + 10, 1)], rows=1)


def huge_value_gzip(folder: Path, size: int = 2**30) -> bytes:
    """The same by gzip."""
    page = Page(packed_gzip(_pieces(size)), size + 10, 1)
    return replace_column(honest(folder, "?"), PROMPT, [page], rows=1, codec=2)


def huge_value_announced_as_small(folder: Path, size: int = 2**30) -> bytes:
    """A header that lies about what its page decompresses to."""
    return replace_column(honest(folder, "?"), PROMPT, [Page(packed_zstd(_pieces(size)), 1000, 1)], rows=1)


def value_over_the_limit(folder: Path) -> bytes:
    """Three prompts on one page; the second is larger than a value may be, all are smaller than a page may be."""
    texts = [b"one", b"a" * (17 * 2**20), b"three"]
    content = _levels(3) + b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    page = Page(packed_zstd(iter([content])), len(content), 3)
    return replace_column(honest(folder, "one", "two", "three"), PROMPT, [page], rows=3)


def repeated_value(folder: Path, size: int = 2**20, rows: int = 8192) -> bytes:
    """A value of 1 MB that stands in a dictionary once and in 8,192 rows by its number."""
    numbers = pa.array([0] * rows, pa.int32())
    columns = {}
    for field in arrow_schema("prompts"):
        if field.name == "prompt":
            columns[field.name] = pa.DictionaryArray.from_arrays(numbers, pa.array(["a" * size]))
        elif field.name == "prompt_id":
            columns[field.name] = pa.array([f"{number:016x}" for number in range(rows)])
        elif pa.types.is_boolean(field.type):
            columns[field.name] = pa.nulls(rows, field.type)
        else:
            columns[field.name] = pa.DictionaryArray.from_arrays(numbers, pa.array(["safety"]))
    path = folder / "repeated.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", dictionary_pagesize_limit=2**24, store_schema=False)
    data = path.read_bytes()
    path.unlink()
    return data


def two_billion_nulls(folder: Path) -> bytes:
    """A column that may be null: its levels are one run, in a dozen bytes."""
    values = 2**31 - 1
    content = _levels(values, 0)
    page = Page(packed_zstd(iter([content])), len(content), values)
    return replace_column(honest(folder, "?"), 4, [page], rows=values)


def rows_that_lie(folder: Path) -> bytes:
    """A footer that counts a trillion rows."""
    data = honest(folder, "?")
    footer = footer_of(data)
    footer[3] = footer[4][1][1][0][3] = (6, 2**40)
    return assemble(body_of(data), footer)


def deep_schema(folder: Path) -> bytes:
    """A column inside 20,000 groups."""
    data = honest(folder, "?")
    footer = footer_of(data)
    group: Struct = {3: (5, 1), 4: (8, b"g"), 5: (5, 1)}
    leaf: Struct = {1: (5, 6), 3: (5, 1), 4: (8, b"leaf")}
    root: Struct = {4: (8, b"schema"), 5: (5, 1)}
    footer[2] = (9, (12, [root, *[group] * 9_000, leaf]))
    return assemble(body_of(data), footer)


def many_columns(folder: Path) -> bytes:
    """A schema of 100,000 columns."""
    data = honest(folder, "?")
    footer = footer_of(data)
    leaf: Struct = {1: (5, 6), 3: (5, 1), 4: (8, b"leaf")}
    root: Struct = {4: (8, b"schema"), 5: (5, 100_000)}
    footer[2] = (9, (12, [root, *[leaf] * 100_000]))
    return assemble(body_of(data), footer)


def huge_footer(folder: Path) -> bytes:
    """A footer of 64 MB, all of it a note about the writer."""
    data = honest(folder, "?")
    footer = footer_of(data)
    footer[6] = (8, b"a" * 2**26)
    return assemble(body_of(data), footer)


def damaged_header(folder: Path) -> bytes:
    """A page whose header has a size twice, so that readers may differ."""
    data = honest(folder, "?")
    page = packed_zstd(_pieces(3))
    raw = replace_column(data, PROMPT, [Page(page, 7, 1)], rows=1)
    head = _header(Page(page, 7, 1))
    twice = head.replace(
        bytes([0x15]) + _zigzag(7), bytes([0x15]) + _zigzag(7) + bytes([0x05]) + _zigzag(2) + _zigzag(2**30), 1
    )
    body = body_of(raw).replace(head, twice)
    footer = footer_of(raw)
    chunk = footer[4][1][1][0][1][1][1][PROMPT][3][1]
    chunk[7] = (6, len(twice) + len(page))
    return assemble(body, footer)
