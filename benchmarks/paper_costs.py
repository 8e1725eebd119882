"""What the whole of STAIR costs: tokens by the tool's own dry runs, then hours and money by rates that you name.

    python benchmarks/paper_costs.py                                                     50,000 prompts, 200 iterations
    python benchmarks/paper_costs.py --tokens-per-second 3200 --input-price 0.1 --output-price 0.4

There are as many prompts as in the paper: a half of 20 words (safety), a half of 100 (helpfulness). Each is in one of
the rounds, so that their number decides how often models are trained, and not how many trees there are. Nothing is
asked, and nothing is trained. A dry run counts requests and tokens of each stage, by the assumptions that it prints. A
training takes 6 floating-point operations for each parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section
2.1), and 8 in DPO, whose reference reads each token, too.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from instant_server import WORDS
from trees import show, small_tokenizer

from stairdata.generators.forecast import forecast_responses, forecast_trees
from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.structured_cot.cost_estimate import forecast_structured_cot
from stairdata.recipe import Recipe
from stairdata.runs.forecast import Forecast
from stairdata.runs.options import BuildOptions

MILLION = 1e6
HOUR = 3600
PROMPT_WORDS = {"safety": 20, "helpfulness": 100}
TRAININGS = {"SFT": 6, "DPO": 8, "PRM": 6}
"""Floating-point operations for each parameter and token."""


class Tokens(NamedTuple):
    """What a stage asks of models."""

    requests: int
    read: int
    written: int


def main() -> None:
    """Print the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--sft-rows", type=int, default=20_000)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--answers", type=int, default=15_000, help="to test prompts, of all models together")
    parser.add_argument("--pairs", type=int, default=100_000, help="of steps, of all rounds; PRM pairs as many")
    parser.add_argument("--pair-tokens", type=int, default=500, help="of a side of a pair, with its prompt")
    parser.add_argument("--parameters", type=float, default=8e9)
    parser.add_argument("--tokens-per-second", type=float, default=5000, help="that one GPU writes")
    parser.add_argument("--flops", type=float, default=312e12, help="of one GPU, by its data sheet")
    parser.add_argument("--share-of-flops", type=float, default=0.4, help="that a training reaches")
    parser.add_argument("--input-price", type=float, default=0.1, help="of a million prompt tokens")
    parser.add_argument("--output-price", type=float, default=0.4, help="of a million completion tokens")
    options = parser.parse_args()
    stages = asked(options)
    total = Tokens(*(sum(figures) for figures in zip(*stages.values(), strict=True)))
    show(f"{'stage':<16}{'requests':>14}{'prompt tokens':>18}{'completion tokens':>20}")
    for name, tokens in {**stages, "together": total}.items():
        show(f"{name:<16}{tokens.requests:>14,}{tokens.read:>18,}{tokens.written:>20,}")
    money = (total.read * options.input_price + total.written * options.output_price) / MILLION
    show(
        f"by API, without its prompt cache: {money:,.0f} at {options.input_price} and {options.output_price} a million"
    )
    hours = {"asking": total.written / options.tokens_per_second / HOUR}
    hours |= {f"training {name}": seconds / HOUR for name, seconds in trained(options, stages).items()}
    for name, spent in {**hours, "together": sum(hours.values())}.items():
        show(f"{name:<16}{spent:>10,.1f} h on one GPU{spent / 8:>10,.1f} h on eight")


def asked(options: argparse.Namespace) -> dict[str, Tokens]:
    """Return what each stage asks, by its dry run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder, options)
        build = BuildOptions(root=folder)
        build_prompts(recipe, build)
        return {
            "structured_cot": tokens_of(forecast_structured_cot(recipe, replace(build, limit=options.sft_rows))),
            "trees": tokens_of(forecast_trees(recipe, build)),
            "responses": tokens_of(forecast_responses(recipe, replace(build, limit=options.answers))),
        }


def tokens_of(forecast: Forecast) -> Tokens:
    """Add up the models of a forecast, and print its words."""
    show(forecast.words)
    models = forecast.models
    return Tokens(
        sum(model.requests for model in models),
        sum(model.prompt_tokens for model in models),
        sum(model.completion_tokens for model in models),
    )


def trained(options: argparse.Namespace, stages: dict[str, Tokens]) -> dict[str, float]:
    """Return the seconds of each training on one GPU."""
    read = {
        "SFT": 3 * stages["structured_cot"].written,  # epochs
        "DPO": 2 * options.pairs * options.pair_tokens,
        "PRM": 2 * options.pairs * options.pair_tokens,
    }
    rate = options.flops * options.share_of_flops
    return {name: each * read[name] * options.parameters / rate for name, each in TRAININGS.items()}


def write_recipe(folder: Path, options: argparse.Namespace) -> Recipe:
    """Write the prompts, and return the recipe."""
    rng = random.Random(0)  # noqa: S311 - texts, not secrets
    source = folder / "prompts.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for number in range(options.prompts):
            task = list(PROMPT_WORDS)[number % 2]
            words = " ".join(rng.choices(WORDS, k=PROMPT_WORDS[task] - 1))
            file.write(json.dumps({"prompt": f"{number} {words}", "task": task}) + "\n")
    server = {"base_url": "http://127.0.0.1:1/v1", "model": "actor"}  # a dry run asks nobody
    return Recipe.model_validate(
        {
            "prompts": {"sources": [{"path": str(source)}]},
            "structured_cot": {"teacher": server},
            "actor": server | {"tokenizer": str(small_tokenizer(folder / "tokenizer"))},
            "trees": {"iterations": options.iterations, "judge": {"kind": "self"}},
            "responses": {"method": "sample", "n": 1},
        }
    )


if __name__ == "__main__":
    main()
