"""Keys that occur in several rows, found with eight bytes of memory for each row."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import polars as pl


def repeated_keys(rows: pl.LazyFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the keys that occur in several rows, in an order that repeats.

    What is held of all rows is one hash each; the keys themselves are compared where hashes are equal.

    Args:
        rows: of one or more files.
        keys: columns that make up the key.

    Returns:
        The key columns, and `len`, in how many rows the key is.

    Raises:
        polars.exceptions.PolarsError: the files can't be read.
    """
    # a seed that nobody knows: else somebody could write keys whose hashes are all equal
    hash_ = pl.struct(keys).hash(secrets.randbits(32)).alias("hash")
    hashes = rows.select(hash_).collect(engine="streaming")["hash"].to_numpy(writable=True)
    hashes.sort()
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(twice):
        rows = rows.head(0)
    suspects = rows.select(keys).filter(hash_.is_in(pl.Series(twice).implode()))
    return suspects.group_by(keys).len().filter(pl.col("len") > 1).sort(keys).collect(engine="streaming")
