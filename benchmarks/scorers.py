"""Whether a reward model on a server says of answers what it says in this process, and chooses the same ones.

    python benchmarks/scorers.py --prm runs/prm --responses responses            served for it by vLLM, in 32 bits
    python benchmarks/scorers.py --prm runs/prm --responses responses --dtype bfloat16
    python benchmarks/scorers.py --prm runs/prm --responses responses --base-url http://127.0.0.1:8001/v1 --name prm

The answers are the candidates of an artifact of kind `responses`, with or without scores; all steps of each are scored
by both. The number of choices that differ is that among the candidates of a row, by the scores of this run alone.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from trees import print_machine, show

import stairdata
from stairdata.llm.budget import Budget
from stairdata.recipe import Recipe
from stairdata.scorers.opening import open_scorer
from stairdata.search.choice import best_index
from stairdata.search.scoring import ScoreItem
from stairdata_training.scoring import PrmScorer

AGREED = 1e-4


class Scored(NamedTuple):
    """What one scorer said."""

    values: list[list[float]]
    tokens: int
    seconds: float


def main() -> None:
    """Score the answers of an artifact in both ways, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prm", required=True, help="folder of the reward model")
    parser.add_argument("--responses", required=True, help="an artifact, or its folder")
    parser.add_argument("--limit", type=int, help="rows at most")
    parser.add_argument("--dtype", default="float32", help="number format of the server")
    parser.add_argument("--base-url", help="of a server that runs already")
    parser.add_argument("--name", default="prm", help="its name for the model")
    options = parser.parse_args()
    served: dict[str, Any] = {"path": options.prm, "serve": True}
    if options.base_url:
        served = {"base_url": options.base_url, "model": options.name, "tokenizer": options.prm}
    frame = stairdata.open_artifact(options.responses).scan()
    rows = (frame if options.limit is None else frame.head(options.limit)).collect().to_dicts()
    print_machine()
    here = score(options.prm, rows)
    show(f"in this process: {here.tokens} tokens in {here.seconds:.1f} s")
    there = score({**served, "dtype": options.dtype}, rows)
    show(f"on the server: {there.tokens} tokens, before any are found again, in {there.seconds:.1f} s")
    compare(rows, here.values, there.values)


def score(prm: str | dict[str, Any], rows: Sequence[dict[str, Any]]) -> Scored:
    """Score all steps of all candidates; the time is without that of loading the model or starting its server."""
    recipe = Recipe.model_validate({"responses": {"prm": prm}})
    items = [ScoreItem(row["prompt"], each["text"], each["is_complete"]) for row in rows for each in row["candidates"]]

    async def scored() -> Scored:
        with tempfile.TemporaryDirectory() as folder:
            async with open_scorer(recipe, PrmScorer.load, Path(folder), Budget(), lambda *_: None) as scorer:
                began = time.monotonic()
                found = await scorer.score(items)
                return Scored(found.values, found.tokens, time.monotonic() - began)

    return asyncio.run(scored())


def compare(rows: Sequence[dict[str, Any]], ours: Sequence[list[float]], theirs: Sequence[list[float]]) -> None:
    """Print how far two scorers agree on the steps of all candidates, and on the best candidate of each row."""
    furthest = max(abs(a - b) for a, b in zip(chain(*ours), chain(*theirs), strict=True))
    at, differing = 0, 0
    for row in rows:
        complete = [each["is_complete"] for each in row["candidates"]]
        span = slice(at, at + len(complete))
        chosen = {best_index(complete, [each[-1] for each in side[span]]) for side in (ours, theirs)}
        differing += len(chosen) > 1
        at += len(complete)
    show(f"{len(rows)} rows, {len(ours)} candidates, {len([*chain(*ours)])} scores of steps")
    show(f"greatest difference: {furthest:.2g} (goal {AGREED:g} in float32)")
    show(f"rows whose choice differs: {differing} of {len(rows)}")


if __name__ == "__main__":
    main()
