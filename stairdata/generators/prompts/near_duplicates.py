"""Prompts that repeat others: nearly the same text within the data, or anything that evaluation prompts have, too."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from stairdata.recipe import ContaminationSection, NearDuplicatesSection
from stairdata_schemas.errors import InputError
from stairdata_schemas.text.words import spaced, words

HIGHEST = 0.9  # of the index: above, too few bands are left; what it finds is compared exactly
WEIGHTS = (0.1, 0.9)  # of false positives and negatives in choosing the bands: candidates are checked, misses are not


def character_ngrams(text: str, size: int) -> frozenset[str]:
    """Return a text's runs of `size` characters; a shorter text is one itself."""
    return frozenset(text[start : start + size] for start in range(max(1, len(text) - size + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return how much of two sets is common to both, from 0 to 1."""
    together = len(one | other)
    return len(one & other) / together if together else 1.0


class NearMatch(NamedTuple):
    """What a text resembles."""

    label: str
    similarity: float


class NearDuplicates:
    """Texts by label, asked for those that a new one resembles: MinHash and LSH find them, Jaccard decides.

    The index is that of Broder (1997), "On the resemblance and containment of documents".

    Raises:
        InputError: the library is not installed.
    """

    def __init__(self, section: NearDuplicatesSection) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise InputError(
                "near duplicates need the package datasketch; install it with `pip install 'stairdata[prompts]'`"
            ) from error
        self._section = section
        self._sketch = MinHash
        self._index: Any = MinHashLSH(min(section.threshold, HIGHEST), section.permutations, weights=WEIGHTS)
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def find_or_add(self, label: str, text: str) -> NearMatch | None:
        """Return the text most like this one, if one is alike enough; otherwise remember this one."""
        ngrams = self._ngrams(text)
        sketch = self._sketched(ngrams)
        found = self._best(ngrams, sketch)
        if found is None and label not in self._texts:
            self._texts[label] = text
            self._index.insert(label, sketch, check_duplication=False)
        return found

    def find(self, text: str) -> NearMatch | None:
        """Return the text most like this one, if one is alike enough."""
        ngrams = self._ngrams(text)
        return self._best(ngrams, self._sketched(ngrams))

    def _ngrams(self, text: str) -> frozenset[str]:
        return character_ngrams(spaced(text) or text, self._section.ngram)

    def _sketched(self, ngrams: frozenset[str]) -> Any:
        sketch = self._sketch(self._section.permutations, hashfunc=zlib.crc32)
        sketch.update_batch([ngram.encode("utf-8", "surrogatepass") for ngram in ngrams])
        return sketch

    def _best(self, ngrams: frozenset[str], sketch: Any) -> NearMatch | None:
        candidates = (
            NearMatch(label, jaccard(ngrams, self._ngrams(self._texts[label]))) for label in self._index.query(sketch)
        )
        alike = [each for each in candidates if each.similarity >= self._section.threshold]
        return min(alike, key=lambda each: (-each.similarity, each.label), default=None)


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
