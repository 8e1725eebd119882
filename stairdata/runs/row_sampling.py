"""Seeded sampling that depends on what is sampled, not on the order it comes in.

Each item gets a 64-bit key, mixed from the seed and the item's own numbers; a sample of k is the k smallest keys.
The same items give the same sample, however many shards or batches they come in, on every machine and release.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

T = TypeVar("T")
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


class BottomSample(Generic[T]):
    """The items of the smallest keys out of a stream of any length: a sample of distinct ids in bounded memory.

    The key is a hash of seed and id, so the same ids give the same sample in whatever order they come.

    Args:
        size: items kept.
        seed: of the sample.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._heap: list[tuple[int, str]] = []
        self._items: dict[str, T] = {}

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    def __getitem__(self, item_id: str) -> T:
        return self._items[item_id]

    def would_take(self, item_id: str) -> bool:
        """Return whether `add` would keep an item of this id, given what came so far."""
        return len(self._heap) < self._size or self._key(item_id) < -self._heap[0][0]

    def add(self, item_id: str, item: T) -> None:
        """Keep an item of a new id if its key is among the smallest."""
        entry = (-self._key(item_id), item_id)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            _, dropped = heapq.heappushpop(self._heap, entry)
            if dropped == item_id:
                return
            del self._items[dropped]
        self._items[item_id] = item

    def __iter__(self) -> Iterator[T]:
        """Yield what is kept, the smallest key first."""
        return (self._items[item_id] for _, item_id in sorted(self._heap, reverse=True))

    def _key(self, item_id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._seed}/{item_id}".encode()).digest()[:8], "big")
