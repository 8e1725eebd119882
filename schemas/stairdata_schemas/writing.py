"""The files that a build writes: sound rows in shards, and the rows it refused in quarantine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from stairdata_schemas.files import sync_file, sync_folder
from stairdata_schemas.kinds import arrow_schema, row_schema
from stairdata_schemas.manifest import FileEntry, sha256_of_file

SHARD_BYTES = 256 * 1024**2
ROW_GROUP_ROWS = 2048
QUARANTINE_SCHEMA = pl.Schema(
    {
        "source": pl.String,
        "row": pl.Int64,
        "rule": pl.String,
        "field": pl.String,
        "raw": pl.String,
        "detail": pl.String,
    }
)


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """One input row that was refused."""

    source: str
    row: int
    rule: str
    raw: str
    field: str = ""
    detail: str = ""
    """More on the rule: which row it repeats, say."""


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
        self._writer.write_table(frame.to_arrow().cast(self._schema), row_group_size=ROW_GROUP_ROWS)
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
        self._writer = pq.ParquetWriter(
            self._path(len(self._rows) - 1),
            self._schema,
            compression="zstd",
            use_content_defined_chunking=True,  # the Hub then takes only what changed since the last version
        )

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            sync_file(self._path(len(self._rows) - 1))

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


def sound_rows(kind: str, frame: pl.DataFrame, first: int, refusals: list[QuarantineRow]) -> pl.DataFrame:
    """Return the rows that keep every rule of the kind's schema.

    Args:
        kind: of the rows.
        frame: the rows.
        first: the number of the frame's first row in the build.
        refusals: the other rows are appended here.
    """
    schema = row_schema(kind)
    result, failure = schema.filter(frame, cast=True)
    if len(result) != len(frame):
        invalid = failure.details()
        rules = [column for column in invalid.columns if column not in schema.column_names()]
        # a key that stands in two rows is refused in both, so that a refused row's key is in no sound row
        keys = schema.primary_key()
        numbers = frame.with_row_index("number", first).join(result, on=keys, how="anti", maintain_order="left")
        for number, row in zip(numbers["number"], invalid.iter_rows(named=True), strict=True):
            rule = next(name for name in rules if row[name] == "invalid")
            raw = json.dumps({name: row[name] for name in schema.column_names()}, ensure_ascii=False, default=str)
            refusals.append(QuarantineRow(kind, number, rule, raw, field=rule.partition("|")[0]))
    return result


def write_quarantine(folder: Path, refusals: list[QuarantineRow]) -> None:
    """Write refused rows into `refused.parquet`; without any, not even the folder is made."""
    if not refusals:
        return
    folder.mkdir(parents=True)
    columns = {name: [_storable(getattr(refusal, name)) for refusal in refusals] for name in QUARANTINE_SCHEMA}
    path = folder / "refused.parquet"
    pl.DataFrame(columns, schema=QUARANTINE_SCHEMA).write_parquet(path, compression="zstd")
    sync_file(path)


def _storable(value: str | int) -> str | int:
    """Escape what UTF-8 can't hold: lone surrogates, which JSON escapes may bring in."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
