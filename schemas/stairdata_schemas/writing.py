"""The data files of an artifact: parquet shards."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stairdata_schemas.files import naming, sync_file, sync_folder
from stairdata_schemas.kinds import arrow_schema
from stairdata_schemas.manifest import FileEntry, sha256_of_file

SHARD_BYTES = 256 * 1024**2
ROW_GROUP_ROWS = 2048
ROW_GROUP_BYTES = 64 * 1024**2
"""Bytes of a row group before it is encoded; readers hold whole row groups, and the Hub's viewer reads up to 100 MB."""


class ShardWriter:
    """Writes frames of one kind into parquet shards of about 256 MB, zstd, content-defined chunking."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._schema = arrow_schema(kind)
        self._rows: list[int] = []  # of each shard so far
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True)

    def write(self, frame: pl.DataFrame) -> None:
        """Append rows; they have to be of the kind's schema already."""
        if frame.is_empty() and self._rows:
            return
        if self._writer is None:
            self._open()
        assert self._writer is not None
        table = frame.to_arrow().cast(self._schema)
        with naming(self._path(len(self._rows) - 1)):
            self._writer.write_table(table, row_group_size=_row_group_rows(table))
        self._rows[-1] += len(frame)
        if self._path(len(self._rows) - 1).stat().st_size >= SHARD_BYTES:
            self._close_shard()

    def close(self) -> list[FileEntry]:
        """Finish the last shard, give all their final names, and return them."""
        if not self._rows:
            self._open()
        self._close_shard()
        entries = [self._rename(index) for index in range(len(self._rows))]
        sync_folder(self.folder)
        return entries

    def _open(self) -> None:
        self._rows.append(0)
        self._writer = parquet_writer(self._path(len(self._rows) - 1), self._schema)

    def _close_shard(self) -> None:
        if self._writer is not None:
            path = self._path(len(self._rows) - 1)
            with naming(path):
                self._writer.close()
                self._writer = None
                sync_file(path)

    def _path(self, index: int) -> Path:
        # the final name holds the number of shards, which only the end tells
        return self.folder / f"part-{index:05d}.parquet"

    def _rename(self, index: int) -> FileEntry:
        path = self.folder / f"train-{index:05d}-of-{len(self._rows):05d}.parquet"
        self._path(index).rename(path)
        return FileEntry(
            path=f"data/{path.name}",
            sha256=sha256_of_file(path),
            bytes=path.stat().st_size,
            rows=self._rows[index],
        )


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a file for rows that the Hub is to show and to keep versions of."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        write_page_index=True,  # the Hub's viewer then reads single pages
        use_content_defined_chunking=True,  # the Hub then takes only what changed since the last version
    )


def write_frame(frame: pl.DataFrame, path: Path, **options: Any) -> None:
    """Write a frame as parquet, by polars.

    Raises:
        OSError: the file can't be written; polars has errors of its own for that.
    """
    try:
        with naming(path):
            frame.write_parquet(path, compression="zstd", **options)
    except pl.exceptions.PolarsError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def _row_group_rows(table: pa.Table) -> int:
    """Return how many rows a row group may have: so many, and not more bytes than a row group may have."""
    fitting: int = ROW_GROUP_BYTES * len(table) // max(1, table.nbytes)
    return max(1, min(ROW_GROUP_ROWS, fitting))
