"""How often 95% intervals hold the true mean, and how long statistics of 10,000 rows take.

    python benchmarks/score_statistics.py coverage [--studies 1000] [--resamples 2000]
    python benchmarks/score_statistics.py time [--rows 10000]

Coverage: studies of 50 and 300 prompts of 1 to 10 rows each, whose rows are 0 or 1; each prompt has a probability of
its own, from a beta distribution with mean p, so that two rows of a prompt correlate by 0.2. Beside our interval stands
the plain percentile interval of the same resamples. One thousand studies measure a coverage of 0.95 to 0.007 (one
standard error). Time: processor seconds of every statistic of a table that compares two models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import polars as pl

from stairdata.statistics.clusters import Floats, group_scores, resample
from stairdata.statistics.comparisons import compare_paired, holm
from stairdata.statistics.intervals import estimate_mean
from stairdata.statistics.reductions import mean_over_attacks, safe_at_1, safe_at_k, worst_attacks
from stairdata.statistics.training_seeds import spread_of_seeds

LARGEST = 10
CORRELATION = 0.2
ATTACKS = [f"attack-{number}" for number in range(5)]
SAMPLES = 4


def study(dice: np.random.Generator, p: float, prompts: int) -> tuple[Floats, list[str]]:
    """Draw scores and the prompt of each."""
    concentration = 1 / CORRELATION - 1
    sizes = dice.integers(1, LARGEST + 1, prompts)
    chances = np.repeat(dice.beta(p * concentration, (1 - p) * concentration, prompts), sizes)
    scores = (dice.random(len(chances)) < chances).astype(np.float64)
    return scores, np.repeat(np.arange(prompts), sizes).astype(str).tolist()


def coverage(p: float, prompts: int, studies: int, resamples: int) -> tuple[float, float]:
    """Return how often our interval and the percentile interval hold p."""
    dice = np.random.default_rng([round(100 * p), prompts])
    ours = percentile = 0
    for number in range(studies):
        scores, ids = study(dice, p, prompts)
        found = estimate_mean(scores, ids, resamples=resamples, seed=number)
        assert found.low is not None
        assert found.high is not None
        ours += found.low <= p <= found.high
        low, high = np.quantile(resample(group_scores(scores, ids), resamples, number)[0], [0.025, 0.975])
        percentile += low <= p <= high
    return ours / studies, percentile / studies


def print_coverage(studies: int, resamples: int) -> None:
    """Print a line for each p and number of prompts."""
    for prompts in (50, 300):
        for p in (0.05, 0.5, 0.95):
            ours, percentile = coverage(p, prompts, studies, resamples)
            print(f"p {p}, {prompts} prompts: studentized {ours:.3f}, plain percentile {percentile:.3f}", flush=True)


def table(dice: np.random.Generator, rows: int) -> pl.DataFrame:
    """Draw rows of two models, with scores that all differ: the slowest case."""
    prompts = max(1, rows // (len(ATTACKS) * SAMPLES))
    cases = pl.DataFrame({"prompt_id": [f"{number:016x}" for number in range(prompts)]})
    cases = cases.join(pl.DataFrame({"attack": ATTACKS}), how="cross")
    cases = cases.join(pl.DataFrame({"sample": range(SAMPLES)}), how="cross")
    scores = dice.random(len(cases))
    return cases.with_columns(score=pl.Series(scores), safe=pl.Series(scores > 0.4))


def print_times(rows: int) -> None:
    """Print the seconds of each statistic."""
    dice = np.random.default_rng(1)
    a, b = table(dice, rows), table(dice, rows)
    ids = a["prompt_id"].to_list()
    single = [f"{number:016x}" for number in range(len(a))]
    pair = (a["score"].to_numpy(), ids), (b["score"].to_numpy(), ids)
    statistics: dict[str, Callable[[], object]] = {
        "mean": lambda: estimate_mean(*pair[0]),
        "Safe@1": lambda: estimate_mean(*safe_at_1(a)[:2]),
        f"Safe@{SAMPLES}": lambda: estimate_mean(*safe_at_k(a, SAMPLES)[:2]),
        "mean over attacks": lambda: estimate_mean(*mean_over_attacks(a)[:2]),
        "goodness@0.1": lambda: estimate_mean(*worst_attacks(a)[:2]),
        "paired difference, sign-flip test, least visible difference": lambda: compare_paired(*pair),
        "Holm": lambda: holm([0.01] * 20),
        "spread between two seeds": lambda: spread_of_seeds({"1": pair[0], "2": pair[1]}),
    }
    total = sum(_timed(name, call) for name, call in statistics.items())
    print(f"all statistics of {len(a):,} rows, {a['prompt_id'].n_unique()} prompts: {total:.2f} s")
    _timed(f"for comparison, the mean of {len(a):,} rows of as many prompts", lambda: estimate_mean(pair[0][0], single))


def _timed(name: str, call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    taken = time.process_time() - begin
    print(f"{name}: {taken:.2f} s", flush=True)
    return taken


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["coverage", "time"])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=10_000)
    given = parser.parse_args()
    if given.what == "coverage":
        print_coverage(given.studies, given.resamples)
    else:
        print_times(given.rows)


if __name__ == "__main__":
    main()
