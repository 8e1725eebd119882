"""Choice among candidates, and what the choice among fewer of them would have been.

The best complete candidate is chosen; one that was cut at a token limit only where none is complete; of equal scores
the earlier. Candidates stand in the order sampled, so the first k of a row are what a build with `n: k` samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from stairdata_schemas.aliases import Row
from stairdata_schemas.errors import UsageError, quote

LEFT_OPEN = ("requests", "prompt_tokens", "prm_calls", "prm_tokens", "seconds")
"""Columns of cost, which nobody knows of fewer candidates."""


class CurvePoint(NamedTuple):
    """The chosen answers of k candidates."""

    k: int
    mean: float | None
    """Of the measure, over the rows that have one."""
    error: float | None
    """Standard error of that mean, over rows; None of fewer than two."""
    rows: int
    """Rows that have a measure."""


def rank(is_complete: Sequence[bool], scores: Sequence[float]) -> list[int]:
    """Return the indices of candidates, the best first."""
    return sorted(range(len(scores)), key=lambda index: (not is_complete[index], -_comparable(scores[index])))


def best_index(is_complete: Sequence[bool], scores: Sequence[float]) -> int:
    """Return the index of the best candidate, of at least one."""
    return rank(is_complete, scores)[0]


def best_of(row: Row, k: int) -> Row:
    """Return the row that the best of the first k candidates make.

    It is what `method: best_of_n` with `n: k` would have made of the same samples, but for its `response_id`, and for
    what it cost: `completion_tokens` are those of the k candidates, the other columns of cost are None.

    Args:
        row: of kind `responses`, made by `sample` or `best_of_n` with a process reward model.
        k: how many candidates, from 1.

    Raises:
        UsageError: the row has fewer candidates, none that are scored, or comes of a beam search, whose candidates are
            not independent samples.
    """
    candidates = row["candidates"]
    if not 1 <= k <= len(candidates):
        raise UsageError(f"k is {k}, and the response {quote(row['response_id'])} has {len(candidates)} candidates")
    return _chosen(row, k, _ranked(row, k)[0])


def best_of_curve(rows: Iterable[Row], measure: Callable[[Row], float | None]) -> list[CurvePoint]:
    """Average a measure of the chosen answer over all subsets of k candidates, for each k.

    The average is exact: with a row's n candidates from best to worst, that of rank r (from 0) is the best one of
    C(n-1-r, k-1) of the C(n, k) subsets. Of equal scores the earlier candidate is the better one, as in `best_of`.

    Args:
        rows: of kind `responses`, made by `sample` or `best_of_n` with a process reward model.
        measure: of a response, given as a row whose chosen answer (`text`, `score`, `chosen_index`) is the candidate in
            question. Where it is None, as word F1 without a reference, the subsets whose choice that is don't count;
            a row without any that counts is left out at that k.

    Returns:
        One point for each k from 1 to the smallest number of candidates of a row; none without rows.

    Raises:
        UsageError: as `best_of`.
    """
    averages = [_averages(row, measure) for row in rows]
    points = []
    for k in range(1, min(map(len, averages), default=0) + 1):
        values = [value for row in averages if (value := row[k - 1]) is not None]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        points.append(CurvePoint(k, statistics.fmean(values) if values else None, error, len(values)))
    return points


def _averages(row: Row, measure: Callable[[Row], float | None]) -> list[float | None]:
    """Return the mean over all subsets of size k, for each k from 1."""
    n = len(row["candidates"])
    measured = [measure(_chosen(row, n, index)) for index in _ranked(row, n)]
    averages: list[float | None] = []
    for k in range(1, n + 1):
        pairs = [(weight, value) for weight, value in zip(_weights(n, k), measured, strict=True) if value is not None]
        total = sum(weight for weight, _ in pairs)
        # each share is a number of its own: the binomials of many candidates are larger than a float holds
        averages.append(math.fsum(weight / total * value for weight, value in pairs) if total else None)
    return averages


def _weights(n: int, k: int) -> Iterator[int]:
    """Yield C(n-1-r, k-1) for each rank r from 0, each out of the one before."""
    weight = math.comb(n - 1, k - 1)
    for place in range(n):
        yield weight
        weight = weight * (n - place - k) // max(1, n - 1 - place)


def _ranked(row: Row, k: int) -> list[int]:
    candidates = row["candidates"][:k]
    if row["method"] == "beam":
        raise UsageError(
            f"the response {quote(row['response_id'])} comes of a beam search, whose candidates are not independent "
            "samples; use one of method sample or best_of_n"
        )
    scores = [each["score"] for each in candidates]
    if k > 1 and None in scores:
        raise UsageError(
            f"the candidates of the response {quote(row['response_id'])} have no scores; build responses with "
            "responses.prm"
        )
    return rank([each["is_complete"] for each in candidates], scores) if k > 1 else [0]


def _chosen(row: Row, k: int, index: int) -> Row:
    candidates, step_scores = row["candidates"][:k], row.get("step_scores")
    return (
        row
        | dict.fromkeys(LEFT_OPEN)
        | {
            "n": k,
            "candidates": candidates,
            "chosen_index": index,
            "text": candidates[index]["text"],
            "score": candidates[index]["score"],
            "completion_tokens": sum(each["tokens"] for each in candidates),
            "step_scores": step_scores[:k] if step_scores is not None else None,
        }
    )


def _comparable(score: float) -> float:
    """Return a score that can be compared: rows of older releases may hold NaN, which loses."""
    return -math.inf if math.isnan(score) else score
