"""Parts of a zip archive, each read up to a limit; also those packed with Zstandard, which Python 3.11 can't unpack."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from stairdata_schemas.errors import InputError
from stairdata_schemas.formats.limits import check, scaled

ZSTANDARD = 93
"""The method's number: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, section 4.4.5."""
_LOCAL_HEADER = 30
_ENCRYPTED = 1


class ZipParts(NamedTuple):
    """An open archive."""

    path: Path
    archive: zipfile.ZipFile
    file: IO[bytes]

    @property
    def names(self) -> list[str]:
        """The names of the parts; of two of one name the last counts, as for other readers."""
        return list(self.archive.NameToInfo)

    def read(self, name: str, limit: int) -> bytes:
        """Unpack one part.

        Args:
            name: one of `names`.
            limit: bytes that it may have, packed or unpacked, before it is scaled.

        Raises:
            TooLargeError: it has more; no more of it was unpacked.
            InputError: it is damaged, encrypted, or packed in another way.
        """
        part = self.archive.NameToInfo[name]
        what = f"the part {name!r}"
        check(part.compress_size, limit, self.path, what)
        if part.flag_bits & _ENCRYPTED:
            raise InputError(f"{self.path}: {what} is encrypted; write the file without a password")
        most = scaled(limit) + 1
        try:
            data = self._zstandard(part, most) if part.compress_type == ZSTANDARD else self._usual(part, most)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise InputError(f"{self.path}: {what} can't be read: {error}") from error
        check(len(data), limit, self.path, what)
        return data

    def _usual(self, part: zipfile.ZipInfo, most: int) -> bytes:
        with self.archive.open(part) as opened:
            return opened.read(most)

    def _zstandard(self, part: zipfile.ZipInfo, most: int) -> bytes:
        import pyarrow as pa

        self.file.seek(part.header_offset)
        head = self.file.read(_LOCAL_HEADER)
        self.file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
        with pa.input_stream(pa.py_buffer(self.file.read(part.compress_size)), compression="zstd") as opened:
            data: bytes = opened.read(most)
        if len(data) < most and zlib.crc32(data) != part.CRC:
            raise zipfile.BadZipFile("its checksum is another")
        return data


@contextmanager
def open_zip(path: Path) -> Iterator[ZipParts]:
    """Open an archive.

    Raises:
        InputError: it can't be read, or is none.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InputError(f"{path} can't be read as a zip archive: {error}") from error
        with archive:
            yield ZipParts(path, archive, file)
