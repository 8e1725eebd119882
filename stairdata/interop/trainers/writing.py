"""Files of rows for trainers: JSON Lines or parquet, written row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stairdata_schemas.aliases import Row

ROWS_AT_ONCE = 1024


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    tables = _tables(rows)
    first = next(tables, None)
    if first is None:
        return
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table.cast(first.schema))


def _tables(rows: Iterable[Row]) -> Iterator[pa.Table]:
    left = iter(rows)
    while some := list(islice(left, ROWS_AT_ONCE)):
        yield pl.DataFrame(some, infer_schema_length=None).to_arrow()


WRITERS: dict[str, Callable[[Path, Iterable[Row]], None]] = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
"""By the ending of the file."""
