"""Which share of its servers' rate a build has: of two, one four times slower, or of a real model on vLLM.

    python benchmarks/endpoints.py                           responses, trees and evaluations, three runs each
    python benchmarks/endpoints.py --kinds trees --repeats 1
    python benchmarks/endpoints.py --model runs/sft --prompts FILE... --window 128 --again 0.5     one served model

The two servers are batching_server.py, whose rate is set by the clock; both are asked through `--endpoints`. After each
build the very same requests are sent again from a bare client, `--window` at a time, to each server alone. Rates are
tokens a second, as in trees.py: of the servers while the window is full, of the build from its first answer until 256
units are left (with `--model` 128, or 32 trees: about as many as can fill the server). The share of the whole build,
with its start and its tail, is printed, too.

A model's own answers are evaluated by rule with the two servers; with `--model` it judges them as well. That server's
prefix cache is emptied before each of both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from trees import (
    Sent,
    Watch,
    print_machine,
    read_prompts,
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
from stairdata.llm.vllm_server import ManagedServer, ServerOptions
from stairdata.recipe import Recipe
from stairdata.runs.executors.executor import Execution
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact

GOAL, GOAL_OF_A_MODEL = 0.9, 0.93
SLOWER = 4
STEADY = 256
"""Units left from which on the tail begins: the windows may no longer be full."""
UNITS = {"responses": 3000, "trees": 240, "evaluations": 3000}
UNITS_OF_A_MODEL = {"responses": 900, "trees": 64, "evaluations": 320}
STEADY_OF_A_MODEL = {"responses": 128, "trees": 32, "evaluations": 128}
"""Units that can fill the 128 places of a server: an expansion has four sequences."""
MAX_TOKENS = 128
"""Of an answer of the real model, or a few long ones would be all of the tail."""
KEY = "BENCHMARK_KEY"
BUILDS: dict[str, Callable[..., Artifact]] = {
    "responses": build_responses,
    "trees": build_trees,
    "evaluations": build_evaluations,
}


class Spread(NamedTuple):
    """One build on all servers."""

    sent: list[Sent]
    rate: float
    """Tokens a second, until few units are left."""
    whole: float
    """Tokens a second, from the first request to the end."""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(BUILDS), choices=BUILDS)
    parser.add_argument("--units", type=int, help=f"default: {UNITS}, with --model {UNITS_OF_A_MODEL}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window", type=int, default=160, help="requests in flight of the bare client")
    parser.add_argument("--again", type=float, default=0.3, help="share of the requests that are sent again")
    parser.add_argument("--steady", type=int, help="units left where the tail begins")
    parser.add_argument("--pass-ms", type=float, default=25, help="of the faster server")
    parser.add_argument("--model", type=Path, help="folder; served here by vLLM in place of the two servers")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="of that server")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], help="JSONL with prompt and task")
    options = parser.parse_args()
    print_machine()
    goal = GOAL_OF_A_MODEL if options.model else GOAL
    with servers(options) as urls:
        for kind in options.kinds:
            shares = [compare(kind, urls, options) for _ in range(options.repeats)]
            show(f"{kind}: share of the rate alone, median of {options.repeats}: {median(shares):.3f} (goal {goal})")


@contextlib.contextmanager
def servers(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Give the URLs of two servers of known rates, or of one that serves a model."""
    if options.model:
        os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # without it, a server offers no way to empty its prefix cache
        with ManagedServer(ServerOptions(str(options.model), options.log)) as server:
            os.environ[KEY] = server.api_key
            yield (server.base_url,)
        return
    speeds = [
        {"pass_ms": options.pass_ms * times, "sequence_ms": 0, "tokens": 4, "places": 128} for times in (1, SLOWER)
    ]
    with (
        stand_in("batching_server.py", json.dumps(speeds[0])) as fast,
        stand_in("batching_server.py", json.dumps(speeds[1])) as slow,
    ):
        yield fast, slow


def empty_prefix_cache(url: str) -> None:
    """Have vLLM forget what it has read, so that both sides begin alike."""
    request = urllib.request.Request(  # noqa: S310 - our own server
        url.removesuffix("/v1") + "/reset_prefix_cache",
        method="POST",
        headers={"Authorization": f"Bearer {os.environ[KEY]}"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60):
        pass


def compare(kind: str, urls: Sequence[str], options: argparse.Namespace) -> float:
    """Build on all servers, and send the requests again to each; return the share."""
    if options.model:
        empty_prefix_cache(urls[0])
    with tempfile.TemporaryDirectory() as folder:
        ours = build(kind, urls, Path(folder), options)
    if options.model:
        empty_prefix_cache(urls[0])
    window = min(options.window, int(len(ours.sent) * options.again) // 3)  # so that it is full in a small run, too
    alone = [saturated_rate(ours.sent, url, options.again, window) for url in urls]
    share = ours.rate / sum(alone)
    show(
        f"{kind}: {len(ours.sent)} requests at {ours.rate:.0f} tokens/s; alone, {window} at a time, "
        f"{' and '.join(f'{rate:.0f}' for rate in alone)}; share {share:.1%}, "
        f"of the whole build {ours.whole / sum(alone):.1%}"
    )
    return share


def build(kind: str, urls: Sequence[str], folder: Path, options: argparse.Namespace) -> Spread:
    """Build one artifact on all servers, and watch."""
    watch, sent = Watch(kind), list[Sent]()
    with recording(sent):
        BUILDS[kind](
            recipe_for(kind, urls[0], folder, options),
            BuildOptions(root=folder, progress=watch, max_quarantine=1.0),
            execution=Execution(endpoints=tuple(urls) if len(urls) > 1 else ()),
        )
    few = STEADY_OF_A_MODEL[kind] if options.model else STEADY
    steady = options.steady or min(few, len(watch.finished) // 2)
    first, last = min(one.ended for one in sent), sorted(watch.finished)[-steady]
    begun, ended = min(one.began for one in sent), max(one.ended for one in sent)
    return Spread(sent, speed(sent, first, last), speed(sent, begun, ended))


def recipe_for(kind: str, url: str, folder: Path, options: argparse.Namespace) -> Recipe:
    """Write the prompts, and return the recipe."""
    source, real = folder / "prompts.jsonl", options.model is not None
    units = options.units or (UNITS_OF_A_MODEL if real else UNITS)[kind]
    rows = read_prompts(options.prompts, units) if options.prompts else safety_prompts(units)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    server: dict[str, Any] = {"base_url": url, "model": "actor"} | ({"api_key_env": KEY} if real else {})
    tokens = {"max_tokens": MAX_TOKENS} if real else {}
    sections: dict[str, Any] = {
        "prompts": {"sources": [{"path": str(source)}]},
        "actor": server | {"tokenizer": str(options.model or small_tokenizer(folder / "tokenizer"))},
        "responses": {"method": "sample", "n": 1} | tokens,
        "trees": {"iterations": 6 if real else 20, "judge": {"kind": "rule"}}
        | ({"max_tokens": MAX_TOKENS, "rollout_tokens": MAX_TOKENS} if real else {}),
    }
    if kind == "evaluations":  # of the actor
        score = "strongreject" if real else "refusal"
        benchmark = {"name": "asked", "path": str(source), "columns": {"prompt": "prompt"}, "score": score}
        judge = {"judge": server | {"kind": "rubric", "reasks": 0} | tokens} if real else {}
        sections["evaluations"] = {"benchmarks": [benchmark]} | judge
    recipe = Recipe.model_validate(sections)
    build_prompts(recipe, BuildOptions(root=folder))
    return recipe


if __name__ == "__main__":
    main()
