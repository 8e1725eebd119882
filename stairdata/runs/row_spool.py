"""Rows on disk between two passes, so that a choice among all of them needs a few columns alone in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from stairdata_schemas.artifacts import scan_files
from stairdata_schemas.writing import write_frame


class RowSpool:
    """Frames written to a folder, chosen from by row number, and read again; a context manager that clears up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Path] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def fill(self, frames: Iterator[pl.DataFrame]) -> bool:
        """Write the frames; tell whether there was one."""
        for number, frame in enumerate(frames):
            path = self._folder / f"{number:06d}.parquet"
            write_frame(frame, path, compression_level=1)
            self._files.append(path)
        return bool(self._files)

    def columns(self, *names: str) -> pl.DataFrame:
        """Return some columns of all rows, and `row`, the number of each."""
        return scan_files(self._files, row_index_name="row").select("row", *names).collect(engine="streaming")

    def rows(self, numbers: pl.Series) -> Iterator[pl.DataFrame]:
        """Yield the rows of some numbers, in the order they were written."""
        wanted = pl.DataFrame({"row": numbers.cast(pl.UInt32)})
        first = 0
        for path in self._files:
            frame = scan_files([path]).collect()
            numbered = frame.with_row_index("row", first)
            first += len(frame)
            kept = numbered.join(wanted, on="row", how="semi", maintain_order="left").drop("row")
            if not kept.is_empty():
                yield kept
