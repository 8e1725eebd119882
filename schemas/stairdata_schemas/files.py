"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stairdata_schemas.aliases import Json


def cache_folder() -> Path:
    """Return the folder for what can be made anew: STAIRDATA_CACHE, XDG_CACHE_HOME/stairdata or ~/.cache/stairdata."""
    given = os.environ.get("STAIRDATA_CACHE")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "stairdata"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path into errors of the system that lack it: a write to an open file on a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    payload = data.encode("utf-8") if isinstance(data, str) else data
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_private(path: Path, data: bytes | str) -> None:
    """Replace a file in one step; no other user can read it at any moment."""
    mask = os.umask(0o077)
    try:
        write_atomic(path, data)
    finally:
        os.umask(mask)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with naming(path), path.open("rb") as file:
        os.fsync(file.fileno())


class Journal:
    """An append-only file of JSON records, each with a checksum, that survives SIGKILL at any moment.

    A line is eight hex digits of CRC-32, a space, the record as JSON. Reading stops at the first line that is
    cut or damaged, and opening for writing cuts the file there, so that a record is either whole or not there.

    A record survives a power cut once `commit` has returned, and so do those before it, whoever wrote them. A disk that
    refuses once ends the journal: what a failed sync left out the system takes for written, so that the next sync would
    say that all is well.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._size = _sound_length(path)
        self._file.truncate(self._size)
        self._synced = 0
        self._syncing: asyncio.Future[None] | None = None
        self._failure: OSError | None = None
        self._lock = threading.Lock()

    def append(self, record: Json) -> int:
        """Write a record, which survives the end of this process, however it ends.

        Returns:
            Where it begins in the file, for `read_record`.
        """
        line, begin = _line(record), self._size
        with self._noting_failure():
            self._file.write(line)
            self._file.flush()
        self._size += len(line)
        return begin

    async def commit(self) -> None:
        """Wait until all that was appended so far survives a power cut.

        Whoever waits while the disk is at work shares the next sync, which runs in a thread: the event loop goes on.

        Raises:
            OSError: the disk refused, now or earlier.
        """
        end = self._size
        while self._synced < end:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.ensure_future(asyncio.to_thread(self._sync))
                self._syncing.add_done_callback(_retrieve_exception)  # whoever waited may be cancelled by then
            await asyncio.shield(self._syncing)

    def close(self) -> None:
        with self._lock:  # a sync is not cut off by whoever is cancelled while it waits for it
            self._file.close()

    def _sync(self) -> None:
        with self._lock:
            end = self._size  # what is appended meanwhile may be on disk, too, or not
            with self._noting_failure():
                os.fsync(self._file.fileno())
            self._synced = end

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure
        try:
            with naming(self.path):
                yield
        except OSError as error:
            self._failure = error
            raise


def _retrieve_exception(future: asyncio.Future[None]) -> None:
    """Retrieve an error, so that asyncio does not print it."""
    if not future.cancelled():
        future.exception()


def read_journal(path: Path) -> Iterator[Json]:
    """Yield the records of a journal up to the first one that is cut or damaged."""
    for _, record in scan_journal(path):
        yield record


def scan_journal(path: Path) -> Iterator[tuple[int, Json]]:
    """Yield where each record begins, and the record, as `read_journal` does."""
    if not path.exists():
        return
    begin = 0
    with path.open("rb") as file:
        for line in file:
            record = _record(line)
            if record is None:
                return
            yield begin, record
            begin += len(line)


def read_record(file: IO[bytes], begin: int) -> Json:
    """Read the record of an open journal that begins there."""
    file.seek(begin)
    record = _record(file.readline())
    assert record is not None, "it was whole when it was written"
    return record


def _line(record: Json) -> bytes:
    payload = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _record(line: bytes) -> Json | None:
    if len(line) < 10 or not line.endswith(b"\n"):
        return None
    payload = line[9:-1]
    if line[:9] != b"%08x " % zlib.crc32(payload):
        return None
    record: Json = json.loads(payload.decode("utf-8", "surrogatepass"))
    return record


def _sound_length(path: Path) -> int:
    length = 0
    with path.open("rb") as file:
        for line in file:
            if _record(line) is None:
                break
            length += len(line)
    return length
