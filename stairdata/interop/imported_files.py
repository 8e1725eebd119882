"""What imports share: the files that they read, and the frames that they build of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import polars as pl

from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import InputError
from stairdata_schemas.kinds import polars_schema
from stairdata_schemas.manifest import sha256_of_file


def hash_files(paths: Sequence[Path]) -> dict[str, str]:
    """Return the hashes of files by their places.

    Raises:
        InputError: one is not there.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file")
    return {f"{number}": sha256_of_file(path) for number, path in enumerate(paths)}


def frames_of(rows: Iterable[Row], kind: str, rows_at_once: int) -> Iterator[pl.DataFrame]:
    """Yield rows in frames of their kind's types."""
    left, schema = iter(rows), polars_schema(kind)
    while piece := list(islice(left, rows_at_once)):
        yield pl.DataFrame(piece, schema=schema)
