"""Seeded sampling that depends on what is sampled, not on the order it comes in.

Each item gets a 64-bit key, mixed from the seed and the item's own numbers; a sample of k is the k smallest keys.
The same items give the same sample, however many shards or batches they come in, on every machine and release.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

Keys = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def keys_of(seed: int, *parts: npt.NDArray[np.integer]) -> Keys:
    """Mix a seed and columns of whole numbers into one key a row (SplitMix64)."""
    state = np.uint64(seed % 2**64)
    keys = np.full(len(parts[0]), state, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            keys = _mix(keys + part.astype(np.uint64) + _GOLDEN)
    return keys


def _mix(value: Keys) -> Keys:
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


def numbers_of(ids: pl.Series) -> Keys:
    """Read ids of 16 hex digits as numbers."""
    return ids.str.to_integer(base=16, dtype=pl.UInt64).to_numpy()


def share_of(seed: int, what: str, prompt_id: str) -> float:
    """Return a prompt's place in [0, 1): those below a share of x are about that share of all prompts."""
    digest = hashlib.sha256(f"{seed}/{what}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
