"""Near duplicates against a comparison of all pairs, and how often the index misses one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from stairdata.generators.prompts.near_duplicates import MISSED, NearDuplicates
from stairdata.recipe import NearDuplicatesSection

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def compare_all(texts: list[str], threshold: float) -> list[tuple[str, float] | None]:
    """Return what each text repeats of those that were kept before it, by the Jaccard index of each pair."""
    numbers: dict[str, int] = {}
    ngrams = [
        np.unique([numbers.setdefault(text[start : start + 5], len(numbers)) for start in range(len(text) - 4)])
        for text in texts
    ]
    has = np.zeros(len(numbers), dtype=bool)
    joined = np.concatenate(ngrams)  # of the texts that were kept, up to the last of `ends`
    ends = [0]
    kept: list[int] = []
    found: list[tuple[str, float] | None] = []
    for place, own in enumerate(ngrams):
        has[own] = True
        shared = np.add.reduceat(has[joined[: ends[-1]]], ends[:-1], dtype=np.int64) if kept else np.zeros(0)
        has[own] = False
        similarity = shared / (np.diff(ends) + len(own) - shared)
        if len(similarity) and similarity.max() >= threshold:
            first = int(similarity.argmax())
            found.append((label(kept[first]), float(similarity[first])))
        else:
            found.append(None)
            kept.append(place)
            joined[ends[-1] : ends[-1] + len(own)] = own
            ends.append(ends[-1] + len(own))
    return found


def label(place: int) -> str:
    return f"{place:05d}"


def mixed(rng: random.Random) -> Iterator[str]:
    """Yield texts that stand alone, texts of ten templates, and texts with a tail of their own, around 0.8 both."""
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(3000)]

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))[:length].strip()

    templates = [text(440) for _ in range(10)]
    last = text(200)
    for number in range(3000):
        if number % 2:
            yield f"{rng.choice(templates)} {text(rng.randint(45, 75))}"
        elif number % 4:
            last = text(rng.randint(80, 400))
            yield last
        else:
            yield f"{last[: len(last) - rng.randint(0, len(last) // 5)]} {text(rng.randint(1, 20))}"


def test_3000_prompts_are_decided_as_by_comparing_all_pairs() -> None:
    texts = [" ".join(text.split()) for text in mixed(random.Random(11))]  # noqa: S311
    expected = compare_all(texts, 0.8)
    close = [each[1] for each in expected if each]
    assert 300 < len(close) < 2000
    assert sum(value < 0.82 for value in close) > 100
    near = NearDuplicates(NearDuplicatesSection())
    found = [near.find_or_add(label(place), text) for place, text in enumerate(texts)]
    assert [each and tuple(each) for each in found] == expected


@pytest.mark.parametrize(("threshold", "size", "shared"), [(0.5, 90, 60), (0.8, 90, 80), (0.9, 95, 90)])
def test_how_many_just_at_the_threshold_are_missed(threshold: float, size: int, shared: int) -> None:
    rng = random.Random(7)  # noqa: S311

    def letters(count: int) -> str:
        return "".join(rng.choices(LETTERS, k=count))

    pairs, missed = 3000, 0
    near = NearDuplicates(NearDuplicatesSection(threshold=threshold))
    for number in range(pairs):
        same = letters(shared + 4)
        near.find_or_add(label(number), same + letters(size - shared))
        found = near.find(same + letters(size - shared))
        missed += found is None
        assert found is None or found.similarity >= threshold
    assert missed <= 2 * MISSED * pairs
