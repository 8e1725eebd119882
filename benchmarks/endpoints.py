"""Two servers, one four times slower: which share of the sum of their rates a build has with `--endpoints`.

    python benchmarks/endpoints.py                           responses, trees and evaluations, three runs each
    python benchmarks/endpoints.py --kinds trees --repeats 1

Both servers are batching_server.py, whose rate is set by the clock. After each build the very same requests are sent
again from a bare client, `--window` at a time, to each server alone. Rates are tokens a second, as in trees.py: of the
build from its first answer until 256 units are left (of few, a quarter), of the servers while the window is full. The
share of the whole build, with its start and its tail, is printed, too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from trees import (
    Sent,
    Watch,
    print_machine,
    recording,
    safety_prompts,
    saturated_rate,
    show,
    small_tokenizer,
    speed,
    stand_in,
)

from stairdata.generators.evaluations.build import build_evaluations
from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.responses.build import build_responses
from stairdata.generators.trees.build import build_trees
from stairdata.recipe import Recipe
from stairdata.runs.executors.executor import Execution
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact

GOAL = 0.9
SLOWER = 4
STEADY = 256
"""Units left from which on the tail begins: both windows may no longer be full."""
UNITS = {"responses": 3000, "trees": 240, "evaluations": 3000}
BUILDS: dict[str, Callable[..., Artifact]] = {
    "responses": build_responses,
    "trees": build_trees,
    "evaluations": build_evaluations,
}


class Spread(NamedTuple):
    """One build on both servers."""

    sent: list[Sent]
    rate: float
    """Tokens a second, until few units are left."""
    whole: float
    """Tokens a second, from the first request to the end."""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(BUILDS), choices=BUILDS)
    parser.add_argument("--units", type=int, help=f"default: {UNITS}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window", type=int, default=160, help="requests in flight of the bare client")
    parser.add_argument("--again", type=float, default=0.3, help="share of the requests that are sent again")
    parser.add_argument("--pass-ms", type=float, default=25, help="of the faster server")
    options = parser.parse_args()
    print_machine()
    speeds = [
        {"pass_ms": options.pass_ms * times, "sequence_ms": 0, "tokens": 4, "places": 128} for times in (1, SLOWER)
    ]
    with (
        stand_in("batching_server.py", json.dumps(speeds[0])) as fast,
        stand_in("batching_server.py", json.dumps(speeds[1])) as slow,
    ):
        for kind in options.kinds:
            shares = [compare(kind, (fast, slow), options) for _ in range(options.repeats)]
            of_all = f"median of {options.repeats}: {median(shares):.3f} (goal {GOAL})"
            show(f"{kind}: share of the sum of both rates, {of_all}")


def compare(kind: str, urls: tuple[str, str], options: argparse.Namespace) -> float:
    """Build on both servers, and send the requests again to each; return the share."""
    units = options.units or UNITS[kind]
    with tempfile.TemporaryDirectory() as folder:
        ours = build(kind, urls, Path(folder), units)
    window = min(options.window, int(len(ours.sent) * options.again) // 4)  # so that it is full in a small run, too
    alone = [saturated_rate(ours.sent, url, options.again, window) for url in urls]
    share = ours.rate / sum(alone)
    show(
        f"{kind}: {units} units, {len(ours.sent)} requests at {ours.rate:.0f} tokens/s; the servers alone "
        f"{alone[0]:.0f} and {alone[1]:.0f}; share {share:.1%}, of the whole build {ours.whole / sum(alone):.1%}"
    )
    return share


def build(kind: str, urls: tuple[str, str], folder: Path, units: int) -> Spread:
    """Build one artifact on all servers, and watch."""
    watch, sent = Watch(kind), list[Sent]()
    with recording(sent):
        BUILDS[kind](
            recipe_for(kind, urls[0], folder, units),
            BuildOptions(root=folder, progress=watch, max_quarantine=1.0),
            execution=Execution(endpoints=urls),
        )
    steady = min(STEADY, units // 4)
    first, last = min(one.ended for one in sent), sorted(watch.finished)[-steady]
    begun, ended = min(one.began for one in sent), max(one.ended for one in sent)
    return Spread(sent, speed(sent, first, last), speed(sent, begun, ended))


def recipe_for(kind: str, url: str, folder: Path, units: int) -> Recipe:
    """Write the prompts, and return the recipe."""
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in safety_prompts(units)), encoding="utf-8")
    sections: dict[str, Any] = {
        "prompts": {"sources": [{"path": str(source)}]},
        "actor": {"base_url": url, "model": "actor", "tokenizer": str(small_tokenizer(folder / "tokenizer"))},
        "responses": {"method": "sample", "n": 1},
        "trees": {"iterations": 20, "judge": {"kind": "rule"}},
    }
    if kind == "evaluations":
        benchmark = {"name": "asked", "path": str(source), "columns": {"prompt": "prompt"}, "score": "refusal"}
        sections["evaluations"] = {"benchmarks": [benchmark]}  # of the actor
    recipe = Recipe.model_validate(sections)
    build_prompts(recipe, BuildOptions(root=folder))
    return recipe


if __name__ == "__main__":
    main()
