"""Prompts that repeat others: nearly the same text within the data, or anything that evaluation prompts have, too."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from stairdata.recipe import ContaminationSection, NearDuplicatesSection
from stairdata_schemas.text.words import spaced, words

MISSED = 0.001
FAMILY = 0.25
"""How much a text has to resemble a family's first one to join it."""

Numbers: TypeAlias = npt.NDArray[np.uint64]


class NearMatch(NamedTuple):
    """What a text resembles."""

    label: str
    similarity: float


class NearDuplicates:
    """Texts by label, asked for those that a new one resembles: MinHash and LSH find them, Jaccard decides.

    The index is that of Broder (1997), "On the resemblance and containment of documents". Its bands are so chosen that
    a text of the threshold's similarity is missed once in a thousand at most. Texts of one template are a family: who
    resembles one of them is compared with all, and exactly, but by what sets them apart from the family's first text.
    """

    def __init__(self, section: NearDuplicatesSection) -> None:
        self._section = section
        rng = np.random.default_rng(1)
        self._multiply = rng.integers(1, 2**63, section.permutations, dtype=np.uint64) | np.uint64(1)
        self._add = rng.integers(0, 2**63, section.permutations, dtype=np.uint64)
        self._rows = _rows_of_a_band(section.threshold, section.permutations)
        self._bands: dict[tuple[int, bytes], list[_Family]] = {}
        self._labels: set[str] = set()

    def __len__(self) -> int:
        return len(self._labels)

    def find_or_add(self, label: str, text: str) -> NearMatch | None:
        """Return the text most like this one, if one is alike enough; otherwise remember this one."""
        ngrams = self._ngrams(text)
        bands = self._bands_of(ngrams)
        families = self._families(bands)
        found, closest = self._best(ngrams, families)
        if found is None and label not in self._labels:
            self._labels.add(label)
            family = closest or _Family(ngrams)
            family.add(label, ngrams)
            for band in bands:
                known = self._bands.setdefault(band, [])
                if family not in known:
                    known.append(family)
        return found

    def find(self, text: str) -> NearMatch | None:
        """Return the text most like this one, if one is alike enough."""
        ngrams = self._ngrams(text)
        return self._best(ngrams, self._families(self._bands_of(ngrams)))[0]

    def _ngrams(self, text: str) -> Numbers:
        return _ngram_hashes(spaced(text) or text, self._section.ngram)

    def _bands_of(self, ngrams: Numbers) -> list[tuple[int, bytes]]:
        lowest = np.full(len(self._multiply), np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(ngrams), 1024):  # bounds the memory that a long text takes
            values = ngrams[start : start + 1024, None] * self._multiply + self._add
            np.minimum(lowest, (values >> np.uint64(1)).min(axis=0), out=lowest)
        rows = self._rows
        return [(band, lowest[band * rows : (band + 1) * rows].tobytes()) for band in range(len(lowest) // rows)]

    def _families(self, bands: list[tuple[int, bytes]]) -> list[_Family]:
        return list({id(family): family for band in bands for family in self._bands.get(band, ())}.values())

    def _best(self, ngrams: Numbers, families: list[_Family]) -> tuple[NearMatch | None, _Family | None]:
        """Return the best match, and the family whose first text is the most like this one, if one is like it."""
        best: NearMatch | None = None
        closest: tuple[float, _Family] | None = None
        for family in families:
            similarity = family.similarities(ngrams)
            if similarity[0] >= FAMILY and (closest is None or similarity[0] > closest[0]):
                closest = (float(similarity[0]), family)
            highest = float(similarity.max())
            if highest < self._section.threshold or (best is not None and highest < best.similarity):
                continue
            label = min(family.labels[place] for place in np.flatnonzero(similarity == highest))
            if best is None or (-highest, label) < (-best.similarity, best.label):
                best = NearMatch(label, highest)
        return best, closest and closest[1]


class _Family:
    """Texts that resemble a first one: which of its n-grams each has, as bits, and which others."""

    def __init__(self, first: Numbers) -> None:
        self.labels: list[str] = []
        self._first = first
        self._words = -(-len(first) // 64)
        self._bits = np.zeros((self._words, 1), dtype=np.uint64)  # a column a text: whole rows are counted at a time
        self._sizes = np.zeros(1, dtype=np.int64)
        self._others: dict[int, array[int]] = {}

    def add(self, label: str, ngrams: Numbers) -> None:
        place = len(self.labels)
        if place == len(self._sizes):
            self._bits = np.concatenate([self._bits, np.zeros_like(self._bits)], axis=1)
            self._sizes = np.concatenate([self._sizes, np.zeros_like(self._sizes)])
        self._bits[:, place], others = self._split(ngrams)
        self._sizes[place] = len(ngrams)
        for each in others:
            self._others.setdefault(each, array("q")).append(place)
        self.labels.append(label)

    def similarities(self, ngrams: Numbers) -> npt.NDArray[np.float64]:
        """Return the Jaccard index with each text."""
        count = len(self.labels)
        bits, others = self._split(ngrams)
        shared = np.zeros(count, dtype=np.int64)
        for row, own in zip(self._bits, bits, strict=True):
            shared += np.bitwise_count(row[:count] & own)
        for each in others:
            if each in self._others:
                shared[np.frombuffer(self._others[each], dtype=np.int64)] += 1
        similarity: npt.NDArray[np.float64] = shared / (self._sizes[:count] + len(ngrams) - shared)
        return similarity

    def _split(self, ngrams: Numbers) -> tuple[Numbers, list[int]]:
        """Return which of the first text's n-grams are there, 64 to a number, and the others."""
        place = np.minimum(np.searchsorted(self._first, ngrams), len(self._first) - 1)
        is_first = self._first[place] == ngrams
        has = np.zeros(self._words * 64, dtype=bool)
        has[place[is_first]] = True
        return np.packbits(has).view(np.uint64), ngrams[~is_first].tolist()


def similarity(one: str, other: str, ngram: int = 5) -> float:
    """Return the Jaccard index of two texts' character n-grams, ignoring case and punctuation."""
    first, second = (_ngram_hashes(spaced(text) or text, ngram) for text in (one, other))
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _rows_of_a_band(threshold: float, permutations: int) -> int:
    """Return the most rows with which a text of the threshold's similarity is missed at most this often: MISSED."""
    fits = (rows for rows in range(permutations, 1, -1) if (1 - threshold**rows) ** (permutations // rows) <= MISSED)
    return next(fits, 1)


def _ngram_hashes(text: str, size: int) -> Numbers:
    """Return the distinct 64-bit hashes of a text's n-grams in ascending order; a shorter text is one itself."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    size = min(size, len(codes))
    hashes = np.full(len(codes) - size + 1, size, dtype=np.uint64)
    for start in range(size):
        hashes = (hashes ^ codes[start : start + len(hashes)]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


class Contamination:
    """Evaluation prompts, asked whether a prompt overlaps with one.

    Three ways: the same words throughout; `ngram` words in a row in common (an evaluation prompt of fewer words, but
    at least `min_words`, has to stand in the prompt as a whole); nearly the same text.
    """

    def __init__(self, section: ContaminationSection) -> None:
        self._section = section
        self._exact: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        self._short: dict[str, list[tuple[list[str], str]]] = {}
        self._near = NearDuplicates(NearDuplicatesSection(threshold=section.threshold))

    def add(self, label: str, text: str) -> None:
        """Take an evaluation prompt in."""
        plain = spaced(text) or text
        found = words(plain)
        self._exact.setdefault(plain, label)
        if len(found) >= self._section.ngram:
            for run in _runs(found, self._section.ngram):
                self._runs.setdefault(run, label)
        elif len(found) >= self._section.min_words:
            self._short.setdefault(" ".join(found[: self._section.min_words]), []).append((found, label))
        self._near.find_or_add(label, text)

    def find(self, text: str) -> str | None:
        """Return which evaluation prompt a text overlaps with, and how; None if with none."""
        plain = spaced(text) or text
        if plain in self._exact:
            return f"the same as {self._exact[plain]}"
        found = words(plain)
        for run in _runs(found, self._section.ngram):
            if run in self._runs:
                return f"{self._section.ngram} words in common with {self._runs[run]}"
        inside = next(self._contained(found), None)
        if inside is not None:
            return f"contains {inside}"
        alike = self._near.find(text)
        return alike and f"nearly {alike.label} (similarity {alike.similarity:.2f})"

    def _contained(self, found: list[str]) -> Iterator[str]:
        if not self._short:
            return
        for start, head in enumerate(_runs(found, self._section.min_words)):
            for short, label in self._short.get(head, ()):
                if found[start : start + len(short)] == short:
                    yield label


def _runs(found: list[str], size: int) -> Iterable[str]:
    return (" ".join(found[start : start + size]) for start in range(len(found) - size + 1))
