"""How well `stairdata build evaluations` keeps a judge's server busy: share of the server's saturated rate.

    python benchmarks/judging.py                                                      three runs, two to three minutes
    python benchmarks/judging.py --base-url http://127.0.0.1:8001/v1 --name judge     on a real server

Answers of a `responses` artifact are judged by StrongREJECT's rubric; then the very same requests are sent again from a
bare client, `--window` at a time. Rates are tokens a second, as in trees.py: of the build from its first judgement
until fewer answers than `--steady` are left, so that the growth of its window of requests counts; of the second run
while its window is full. Without `--base-url` the server is batching_server.py, which takes as long for a judgement as
a server with continuous batching would, with as many places as vLLM has where stairdata starts it. A real server finds
the prompts of the build in its prefix cache, so that the share errs to our disadvantage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from trees import (
    Sent,
    Watch,
    instant_server,
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
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact

GOAL = 0.93
PER_PROMPT = 8
SPEED = '{"pass_ms": 25, "tokens": 4, "places": 128}'


class Judged(NamedTuple):
    """One build of judgements."""

    watch: Watch
    sent: list[Sent]
    rate: float
    """Tokens a second, from the first judgement until few answers are left."""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window", type=int, default=160, help="requests in flight of the second run")
    parser.add_argument("--steady", type=int, default=128)
    parser.add_argument("--again", type=float, default=0.5, help="share of the requests that are sent again")
    parser.add_argument("--speed", default=SPEED, help="of batching_server.py, as JSON")
    parser.add_argument("--base-url", help="a server elsewhere; its key is in OPENAI_API_KEY")
    parser.add_argument("--name", default="actor", help="the server's name for the model")
    options = parser.parse_args()
    print_machine()
    show(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    if "OPENAI_API_KEY" in os.environ:
        os.environ["BENCHMARK_KEY"] = os.environ["OPENAI_API_KEY"]
    shares = list[float]()
    with tempfile.TemporaryDirectory() as name, judge_server(options) as url:
        folder = Path(name)
        given = answers(folder, options.answers)
        for number in range(options.repeats):
            ours = judge(options, url, given, folder / f"run-{number}")
            full = saturated_rate(ours.sent, url, options.again, options.window)
            shares.append(ours.rate / full)
            report(ours, full, shares[-1], options.window)
    show(f"share of the saturated rate, median of {options.repeats}: {median(shares):.3f} (goal {GOAL})")


def answers(folder: Path, count: int) -> Artifact:
    """Have a model that answers at once answer prompts, eight times each."""
    source = folder / "prompts.jsonl"
    rows = safety_prompts(-(-count // PER_PROMPT))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_prompts(Recipe.model_validate({"prompts": {"sources": [{"path": str(source)}]}}), BuildOptions(root=folder))
    with instant_server() as url:
        actor = {"base_url": url, "model": "actor", "tokenizer": str(small_tokenizer(folder / "tokenizer"))}
        recipe = Recipe.model_validate({"actor": actor, "responses": {"method": "sample", "n": PER_PROMPT}})
        return build_responses(recipe, BuildOptions(root=folder))


def judge(options: argparse.Namespace, url: str, given: Artifact, root: Path) -> Judged:
    """Judge all answers as the command does, and watch."""
    path = given.folder.parents[1] / "prompts.jsonl"
    benchmark = {"name": "asked", "path": str(path), "columns": {"prompt": "prompt"}, "score": "strongreject"}
    judged_by = {"kind": "rubric", "base_url": url, "model": options.name}
    recipe = Recipe.model_validate({"evaluations": {"benchmarks": [benchmark], "judge": judged_by}})
    watch, sent = Watch("evaluations"), list[Sent]()
    with recording(sent):
        artifact = build_evaluations(recipe, BuildOptions(root=root, inputs=(str(given.folder),), progress=watch))
    assert artifact.manifest.rows == given.manifest.rows * PER_PROMPT, artifact.manifest.outcomes
    ends = sorted(watch.finished)
    last = ends[max(0, len(ends) - options.steady)]
    return Judged(watch, sent, speed(sent, min(one.ended for one in sent), last))


def report(ours: Judged, full: float, share: float, window: int) -> None:
    """Print the speeds of a build and of the bare client."""
    seconds = ours.watch.ended - ours.watch.began
    show(
        f"{len(ours.sent)} judgements in {seconds:.1f} s, {ours.rate:.0f} tokens/s, "
        f"{1000 * ours.watch.cpu / len(ours.sent):.1f} ms of our CPU a judgement; the same requests, {window} at a "
        f"time: {full:.0f} tokens/s; share {share:.1%}"
    )


@contextlib.contextmanager
def judge_server(options: argparse.Namespace) -> Iterator[str]:
    """Give the URL of the judge's server."""
    if options.base_url:
        yield options.base_url
        return
    with stand_in("batching_server.py", options.speed) as url:
        yield url


if __name__ == "__main__":
    main()
