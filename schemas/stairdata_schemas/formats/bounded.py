"""Files and streams that are read up to a limit: small files, lines, and what is compressed."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stairdata_schemas.formats import limits
from stairdata_schemas.formats.limits import TooLargeError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a small file.

    Args:
        path: the file.
        limit: bytes, before it is scaled.

    Raises:
        TooLargeError: it has more; no more of it was read.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        limits.check(os.fstat(file.fileno()).st_size, limit, path, "the file")
        data = file.read(limits.scaled(limit) + 1)  # it may grow, or be a pipe
    limits.check(len(data), limit, path, "the file")
    return data


def read_text(path: Path, limit: int, encoding: str = "utf-8") -> str:
    """Read a small text file as `Path.read_text` does.

    Raises:
        TooLargeError: it is over the limit; no more of it was read.
        OSError: it can't be read.
        UnicodeDecodeError: it is in another encoding.
    """
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, limit)), encoding).read()


def lines(file: IO[str], name: object, limit: int = limits.ROW_BYTES) -> Iterator[str]:
    """Yield the lines of a text file.

    Raises:
        TooLargeError: a line has more characters than the limit; no more of it was read.
    """
    longest = limits.scaled(limit)
    for number, line in enumerate(iter(partial(file.readline, longest + 1), ""), 1):
        if len(line) > longest:
            raise TooLargeError(name, f"line {number} is longer than the limit of {limits.size(longest)}")
        yield line


def _open_zst(path: Path, _mode: str) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


COMPRESSIONS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zst}  # type: ignore[dict-item]
"""What opens a compressed file, by its ending."""


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if its ending says that it is compressed.

    Raises:
        TooLargeError: while it is read: it expands to more than `EXPANSION` allows for its size on disk.
    """
    unpacking = COMPRESSIONS.get(path.suffix.lower())
    if unpacking is None:
        with path.open("rb") as file:
            yield file
        return
    with unpacking(path, "rb") as packed, io.BufferedReader(_Expanding(packed, path)) as file:
        yield file


class _Expanding(io.RawIOBase):
    """What comes out of a compressed file, counted."""

    def __init__(self, unpacked: IO[bytes], path: Path) -> None:
        self._unpacked: Any = unpacked
        self._path = path
        self._most = limits.largest_expansion(path.stat().st_size)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count: int = self._unpacked.readinto(buffer)
        self._count += count
        if self._count > self._most:
            packed, most = limits.size(self._path.stat().st_size), limits.size(self._most)
            raise TooLargeError(self._path, f"its {packed} expand to more than the limit of {most}")
        return count
