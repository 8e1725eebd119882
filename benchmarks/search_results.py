"""What test-time search does to answers: score, grammar and refusals of the best of 1, 2, 4, ... and of a beam.

    python benchmarks/search_results.py responses@1.0.0 responses@1.1.0 --root artifacts

The first artifact was made by `best_of_n`; others by any method, over the same prompts. The best of k is the average
over all subsets of k candidates of a prompt. Prints a table in Markdown: means with intervals of 95% over prompts, and
the differences from one sample, paired by prompt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from stairdata import best_of_curve
from stairdata.search.refusal import is_refusal
from stairdata.statistics.comparisons import compare_paired
from stairdata.statistics.intervals import SHARES, estimate_mean
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact, resolve
from stairdata_schemas.grammar import is_grammatical


class Measure(NamedTuple):
    """A figure of one chosen answer; None where a prompt doesn't have it."""

    of: Callable[[Row], float | None]
    bounds: tuple[float, float] | None


def _refusal(task: str) -> Callable[[Row], float | None]:
    return lambda row: float(is_refusal(row["text"])) if row["task"] == task else None


MEASURES = {
    "PRM score": Measure(lambda row: row["score"], None),
    "in the grammar": Measure(lambda row: float(is_grammatical(row["text"])), SHARES),
    "refusals, safety": Measure(_refusal("safety"), SHARES),
    "refusals, helpfulness": Measure(_refusal("helpfulness"), SHARES),
}
Values = dict[str, float]
"""By prompt."""


def curve(rows: Sequence[Row], measure: Measure) -> dict[int, Values]:
    """Return, for k = 1, 2, 4, ..., what the best of k has, by prompt."""
    found: dict[int, Values] = {}
    for row in rows:
        for point in best_of_curve([row], measure.of):
            if point.mean is not None and point.k & (point.k - 1) == 0:
                found.setdefault(point.k, {})[row["prompt_id"]] = point.mean
    return found


def chosen(rows: Sequence[Row], measure: Measure) -> Values:
    """Return what the chosen answers have, by prompt."""
    return {row["prompt_id"]: value for row in rows if (value := measure.of(row)) is not None}


def shown(values: Values, single: Values | None, bounds: tuple[float, float] | None) -> str:
    """Return a mean with its interval, and the difference from one sample."""
    found = estimate_mean(list(values.values()), list(values), bounds)
    interval = "" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})"
    if single is None:
        return f"{found.mean:.3f}{interval}"
    against = compare_paired(
        (list(single.values()), list(single)), (list(values.values()), list(values)), bounds
    ).difference
    ends = "" if against.low is None else f", {against.low:+.3f} to {against.high:+.3f}"
    return f"{found.mean:.3f}{interval}; {against.mean:+.3f}{ends}"


def tokens(rows: Sequence[Row]) -> float:
    """Return the mean of the tokens that were sampled for a prompt."""
    return fmean(row["completion_tokens"] for row in rows)


def main() -> None:
    """Read the artifacts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", nargs="+")
    parser.add_argument("--root", type=Path, default=Path("artifacts"))
    given = parser.parse_args()
    artifacts: list[Artifact] = [resolve(reference, given.root) for reference in given.responses]
    sampled, *others = [each.scan().collect().to_dicts() for each in artifacts]
    curves = {name: curve(sampled, measure) for name, measure in MEASURES.items()}
    most = len(sampled[0]["candidates"])
    lines = [
        f"{len(sampled)} prompts, {sum(row['task'] == 'safety' for row in sampled)} of them safety",
        "",
        "| answer | tokens sampled | " + " | ".join(MEASURES) + " |",
        "|---" * (len(MEASURES) + 2) + "|",
    ]
    for k in next(iter(curves.values())):
        cells = [
            shown(points[k], points[1] if k > 1 else None, MEASURES[name].bounds) for name, points in curves.items()
        ]
        lines.append(f"| best of {k} | {tokens(sampled) * k / most:.0f} | " + " | ".join(cells) + " |")
    for artifact, rows in zip(artifacts[1:], others, strict=True):
        cells = [shown(chosen(rows, measure), curves[name][1], measure.bounds) for name, measure in MEASURES.items()]
        lines.append(f"| {rows[0]['method']}, {artifact.reference} | {tokens(rows):.0f} | " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
