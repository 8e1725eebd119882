"""How long a run will take, by stage, from its recipe and from rates that are given, not measured here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from stairdata.generators.evaluations.benchmarks import load_benchmarks, pin_benchmarks
from stairdata.pipeline.dry_run import PlannedStage, planned_stages
from stairdata.pipeline.run import BASE, searched
from stairdata.pipeline.steps import Until
from stairdata.recipe import EvaluationsSection
from stairdata.recipe.rounds import SearchSettings
from stairdata.stages import FullRecipe


@dataclass(frozen=True, slots=True)
class Rates:
    """What things take; the defaults are those of SmolLM2-135M on two cores without a GPU."""

    tokens_per_second: float = 400
    """Sampled by a model's server, all requests together."""
    start_seconds: float = 100
    """From the start of a model's server to its first answer, with compiling."""
    answer_tokens: float = 100
    """Of an answer of a trained model."""
    base_answer_tokens: float = 194
    """Of an answer of the start model."""
    tree_tokens: float = 140
    """Sampled for one iteration of a tree."""
    pairs_per_tree: float = 0.6
    """Pairs of steps that one iteration gives."""
    prm_pairs_per_tree: float = 1.3
    """Pairs for the process reward model that one iteration gives."""
    sft_seconds: float = 0.8
    """Of a row of SFT, each epoch."""
    dpo_seconds: float = 1.5
    """Of a pair of DPO."""
    prm_seconds: float = 1.1
    """Of a pair of the process reward model's training."""
    prm_tokens_per_second: float = 1000
    """Read by the process reward model."""


class StageForecast(NamedTuple):
    """What a stage will take."""

    name: str
    number: int | None
    """Of the round."""
    words: str
    seconds: float

    @property
    def title(self) -> str:
        return self.name if self.number is None else f"round {self.number}: {self.name}"


PROMPT_TOKENS = 60
"""Of a prompt in its template, which the process reward model reads with each answer."""
LEVELS, SHARE_READ = 5, 0.6
"""Of a beam search: steps of an answer, and how much of it is there on average where it is scored."""
READ_SHARE = 0.4
"""Time of a pair that is only measured, as a share of one that is trained on."""


def forecast_stages(recipe: FullRecipe, rates: Rates, until: Until = "end") -> list[StageForecast]:
    """Forecast each stage of a run, as if nothing were there.

    Reads the benchmarks, to count their prompts.

    Args:
        recipe: of the run.
        rates: what things take.
        until: what is trained last.
    """
    counts, forecasts, is_served = _Counts(recipe), [], False
    for stage in planned_stages(recipe, until):
        words, seconds = _of_stage(stage, recipe, rates, counts)
        asks = stage.name.startswith(("trees", "responses", "evaluations"))
        if asks and not is_served:  # a model's server runs until the next training
            seconds += rates.start_seconds
        is_served = asks or (is_served and not stage.name.startswith("train "))
        forecasts.append(StageForecast(stage.name, stage.number, words, seconds))
    return forecasts


class _Counts:
    """How many prompts the benchmarks have."""

    def __init__(self, recipe: FullRecipe) -> None:
        self.single = _prompts_of(recipe, recipe.evaluations)
        self.searched = _prompts_of(recipe, searched(recipe)) if recipe.rounds.searches else 0


def _prompts_of(recipe: FullRecipe, section: EvaluationsSection) -> int:
    return len(load_benchmarks(pin_benchmarks(section.benchmarks), recipe.seed, []))


def _of_stage(stage: PlannedStage, recipe: FullRecipe, rates: Rates, counts: _Counts) -> tuple[str, float]:
    """Return in words what a stage does, and its seconds."""
    rounds = recipe.rounds
    if stage.name in {"trees", "trees (held out)"}:
        trees = rounds.eval_prompts if stage.name != "trees" else rounds.prompts_per_round or 0
        tokens = trees * recipe.trees.iterations * rates.tree_tokens
        return f"{trees} trees, {tokens:,.0f} tokens", tokens / rates.tokens_per_second
    if stage.name.startswith("train "):
        return _training(stage.name.removeprefix("train "), recipe, rates)
    if stage.name.startswith(("responses", "evaluations")):
        return _answering(stage, recipe, rates, counts)
    return "", 0.0


def _training(method: str, recipe: FullRecipe, rates: Rates) -> tuple[str, float]:
    rounds, iterations = recipe.rounds, recipe.trees.iterations
    if method == "sft":
        rows = rounds.sft_rows or _rows_of(recipe)
        passes = rows * recipe.sft.epochs
        return f"{rows} rows x {recipe.sft.epochs:g}", passes * rates.sft_seconds
    section, a_tree, seconds = (
        (recipe.dpo, rates.pairs_per_tree, rates.dpo_seconds)
        if method == "dpo"
        else (recipe.prm, rates.prm_pairs_per_tree, rates.prm_seconds)
    )
    there = a_tree * iterations * (rounds.prompts_per_round or 0)
    pairs = there if section.max_rows is None else min(there, section.max_rows)
    measured = a_tree * iterations * rounds.eval_prompts
    words = f"{pairs:.0f} pairs, measured on {measured:.0f}"
    return words, (pairs * section.epochs + READ_SHARE * measured) * seconds


def _rows_of(recipe: FullRecipe) -> int:
    path = recipe.structured_cot.path
    return sum(1 for line in path.read_text(encoding="utf-8").split("\n") if line.strip()) if path else 0


def _answering(stage: PlannedStage, recipe: FullRecipe, rates: Rates, counts: _Counts) -> tuple[str, float]:
    each = rates.base_answer_tokens if stage.name.endswith(f"({BASE})") else rates.answer_tokens
    search = stage.search
    if stage.name.startswith("responses"):
        prompts = recipe.rounds.held_out
    else:
        prompts = counts.single if search is None else counts.searched
    answers, read = (1, 0.0) if search is None else _searching(search, each)
    tokens = prompts * each * answers
    seconds = tokens / rates.tokens_per_second + prompts * read / rates.prm_tokens_per_second
    return f"{prompts} prompts, {tokens:,.0f} tokens", seconds


def _searching(search: SearchSettings, tokens: float) -> tuple[int, float]:
    """Return how many answers' tokens a prompt takes, and how many the process reward model reads."""
    if search.method != "beam":
        return search.n, search.n * (PROMPT_TOKENS + tokens)
    beams = search.width * search.expansions
    return beams, LEVELS * beams * (PROMPT_TOKENS + SHARE_READ * tokens)


def forecast_lines(stages: Sequence[StageForecast], finished: int, rates: Rates) -> Iterator[str]:
    """Yield the forecast for a reader.

    Args:
        stages: all of them, in order.
        finished: so many from the start are there.
        rates: that were assumed.
    """
    for place, stage in enumerate(stages):
        done = place < finished
        takes = f"{stage.seconds / 60:.1f} min" if stage.seconds else "moments"
        yield f"{stage.title}: {'finished' if done else ', '.join(filter(None, [stage.words, takes]))}"
    left = sum(stage.seconds for stage in stages[finished:])
    assumed = ", ".join(f"{field.name.replace('_', ' ')} {getattr(rates, field.name):g}" for field in fields(rates))
    yield f"in all {left / 60:.0f} min, assumed: {assumed}"
