"""What a build would ask of the models, and what that would cost, before it is paid for.

From the recipe alone the search is run on a made-up policy, so the number of requests follows the real algorithm and
only lengths are assumed. From a pilot everything is measured: its rows are kept, and the build goes on from them.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from stairdata.generators.growing import search_config
from stairdata.generators.inputs import open_inputs
from stairdata.generators.options import BuildOptions
from stairdata.generators.prompts import rows_without_task
from stairdata.generators.published_cot import is_published
from stairdata.generators.runner import open_budget
from stairdata.generators.sft import takes_trees
from stairdata.generators.task_labels import template
from stairdata.generators.teaching_forecast import forecast_teachers
from stairdata.generators.trees import begin_trees, check_endpoints, grow_trees, plan_trees, units_of
from stairdata.generators.unfinished import find_before, rows_in, words_on
from stairdata.llm.budget import Budget, unpriced
from stairdata.recipe import Recipe
from stairdata.search import mcts
from stairdata.search.reward import rate
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build
from stairdata_schemas.errors import BuildError, UsageError
from stairdata_schemas.grammar import OUTPUT_CLOSE

STEPS = 4
STEP_TOKENS = 60
RATING_TOKENS = 40
LABEL_TOKENS = 5
JUDGE_PROMPT_TOKENS = 250  # the template, without prompt and answer
BYTES_PER_TOKEN = 4
SIMULATED = 5


class Load(NamedTuple):
    """Requests and tokens of one model."""

    requests: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0

    def plus(self, requests: float, prompt_tokens: float, completion_tokens: float) -> Load:
        """Add requests and their tokens."""
        return Load(
            self.requests + requests,
            self.prompt_tokens + prompt_tokens,
            self.completion_tokens + completion_tokens,
        )

    def times(self, factor: float) -> Load:
        """Scale."""
        return Load(*(factor * value for value in self))


class Work(NamedTuple):
    """What a stage asks of those who write and of those who rate."""

    writing: Load
    rating: Load


def forecast_build(kind: str, recipe: Recipe, options: BuildOptions) -> str:
    """Say what a build of a kind would ask and cost; nothing is called and written but for a pilot.

    Raises:
        UsageError: a pilot of a kind other than trees.
    """
    if options.pilot is not None:
        if kind != "trees":
            raise UsageError("--pilot goes with `build trees`")
        return _measured(recipe, options)
    if kind == "trees":
        return _assumed_trees(recipe, options)
    if kind == "responses":
        answer = recipe.responses.n * STEPS * STEP_TOKENS
        return _assumed_prompts(kind, recipe, options, recipe.actor.name, answer)
    if kind == "prompts" and recipe.prompts.task_judge is not None:
        return _assumed_labels(recipe, options, recipe.prompts.task_judge.name)
    section = recipe.structured_cot
    has_a_source = section.path is not None or section.from_trees is not None or is_published(recipe)
    if kind == "structured_cot" and not has_a_source:
        inputs = open_inputs(options.root, options.inputs)
        if not takes_trees(recipe, inputs):
            return forecast_teachers(recipe, options, inputs)
    return f"{kind}: asks no model"


def _prompts(options: BuildOptions) -> Artifact:
    return open_inputs(options.root, options.inputs).of_kind("prompts")


def _assumed_trees(recipe: Recipe, options: BuildOptions) -> str:
    parent = _prompts(options)
    there = find_before("trees", lambda: plan_trees(recipe, options, parent), options)
    if isinstance(there, Artifact):
        return f"{there.reference} is finished; there is nothing left to ask"
    units, prompts = units_of(recipe, options, parent)
    grown = rows_in(there)
    units = [unit for unit in units if unit.key not in grown]
    total = Work(Load(), Load())
    for task in ("safety", "helpfulness"):
        lengths = [len(prompts[unit.key].prompt.encode()) for unit in units if prompts[unit.key].task == task]
        if lengths:
            mean = sum(lengths) / len(lengths) / BYTES_PER_TOKEN
            one = simulate(recipe, task, mean)
            total = Work(
                total.writing.plus(*one.writing.times(len(lengths))), total.rating.plus(*one.rating.times(len(lengths)))
            )
    assumed = f"{STEPS} steps an answer, {STEP_TOKENS} tokens a step, {RATING_TOKENS} a rating, no step twice"
    head = f"trees: {len(units)} to grow{words_on('trees', there, len(grown))}"
    head += f"\nassumed, not measured: {assumed}; --pilot N measures"
    judge = recipe.trees.judge.endpoint or recipe.actor
    return "\n".join([head, *_table(recipe, {"generation": total.writing, "judge": total.rating}, judge.name)])


def simulate(recipe: Recipe, task: str, prompt_tokens: float) -> Work:
    """Grow trees on a made-up policy and count what they would ask, as a mean.

    Args:
        recipe: section `trees`.
        task: decides what a judge of kind rule is asked.
        prompt_tokens: length of the rendered prompt.
    """
    asks = _ratings_of(recipe, task)
    writing, rating = Load(), Load()
    direct = recipe.trees.judge.style == "direct"
    for seed in range(SIMULATED):
        rng = random.Random(seed)  # noqa: S311
        search = mcts.search(search_config(recipe.trees), rng)
        batch = next(search)
        try:
            while True:
                results = []
                for request in batch:
                    result, written = _made_up(request, rng)
                    results.append(result)
                    if isinstance(request, mcts.Judge):
                        read = JUDGE_PROMPT_TOKENS + prompt_tokens + STEP_TOKENS * STEPS
                        rating = rating.plus(asks, asks * read, asks * (1 if direct else RATING_TOKENS))
                    else:
                        read = prompt_tokens + STEP_TOKENS * request.prefix.count("\n")
                        writing = writing.plus(1, read, written)
                batch = search.send(results)
        except StopIteration:
            pass
    return Work(writing.times(1 / SIMULATED), rating.times(1 / SIMULATED))


def _made_up(request: mcts.Request, rng: random.Random) -> tuple[mcts.Result, int]:
    """Answer a request with steps that are all different; returns the tokens written, too."""
    if isinstance(request, mcts.Judge):
        return rate(rng.choice([-1.0, 0.0, 1.0]), rng.choice([-1.0, 1.0])), 0
    depth = request.prefix.count("\n")
    if isinstance(request, mcts.SampleRest):
        return mcts.RestSample(""), _steps_left(depth, rng) * STEP_TOKENS
    steps = [_steps_left(depth, rng) for _ in range(request.n)]
    words = [f"{rng.random()}\n" if left > 1 else f"{rng.random()}{OUTPUT_CLOSE}" for left in steps]
    if isinstance(request, mcts.SampleSteps):
        samples = [
            mcts.StepSample(text, STEP_TOKENS, left == 1, is_cut=False) for text, left in zip(words, steps, strict=True)
        ]
        return samples, request.n * STEP_TOKENS
    answers = [
        mcts.AnswerSample(text, STEP_TOKENS, left == 1, is_cut=False, rest="")
        for text, left in zip(words, steps, strict=True)
    ]
    return answers, sum(steps) * STEP_TOKENS


def _steps_left(depth: int, rng: random.Random) -> int:
    """Draw how many steps an answer still takes: of a length that varies by one around `STEPS`."""
    return max(1, STEPS - depth + rng.choice([-1, 0, 1]))


def _ratings_of(recipe: Recipe, task: str) -> int:
    kind = recipe.trees.judge.kind
    if kind == "rule":
        return 1 if task == "helpfulness" else 0
    return 0 if kind == "reference" else 2


def _assumed_prompts(kind: str, recipe: Recipe, options: BuildOptions, model: str, written: int) -> str:
    prompts = [row["prompt"] for row in options.rows(_prompts(options), ["prompt"])]
    read = sum(len(prompt.encode()) for prompt in prompts) / BYTES_PER_TOKEN
    load = Load(len(prompts), read, len(prompts) * written)
    head = (
        f"{kind}: {len(prompts)} prompts\nassumed, not measured: {STEPS} steps an answer, {STEP_TOKENS} tokens a step"
    )
    return "\n".join([head, *_table(recipe, {"generation": load}, model)])


def _assumed_labels(recipe: Recipe, options: BuildOptions, judge: str) -> str:
    prompts = rows_without_task(recipe, options)
    question = len(template().render(prompt="").encode())
    read = sum(len(prompt.encode()) + question for prompt in prompts) / BYTES_PER_TOKEN
    load = Load(len(prompts), read, len(prompts) * LABEL_TOKENS)
    head = f"prompts: {len(prompts)} without a task\nassumed, not measured: {LABEL_TOKENS} tokens an answer"
    return "\n".join([head, *_table(recipe, {"generation": load}, judge)])


def _measured(recipe: Recipe, options: BuildOptions) -> str:
    check_endpoints(recipe, options)
    prompts = _prompts(options)
    begun = begin_trees(recipe, options, prompts)
    if isinstance(begun, Artifact):
        return f"{begun.reference} is finished; there is nothing left to ask"
    with begun as build:
        budget = open_budget(build, recipe, options)
        result = grow_trees(build, recipe, options, prompts, budget)
        grown, total = result.outcomes["ok"], len(units_of(recipe, options, prompts)[0])
        if not grown:
            raise BuildError(f"{build.reference}: the pilot grew no tree ({result.outcomes}); see its outcomes")
        return _reckon(build, budget, Load(*result.usage.model_dump(exclude={"cost"}).values()), grown, total)


def _reckon(build: Build, budget: Budget, load: Load, grown: int, total: int) -> str:
    rows = _rows({"all": load.times(total / grown)})
    if budget.prices:
        rows.append(("cost", f"{budget.spent.cost * total / grown:,.2f}"))
    head = f"trees: {total} in all, {grown} of them grown and kept for {build.reference}\nreckoned from those {grown}:"
    return "\n".join([head, *_aligned(rows)])


def _table(recipe: Recipe, loads: dict[str, Load], judge: str) -> list[str]:
    names = {"generation": recipe.actor.name, "judge": judge} if len(loads) > 1 else {"generation": judge}
    rows, cost = _rows(loads), 0.0
    for role, load in loads.items():
        price = recipe.prices.get(names[role])
        if price is None and load.requests:
            return [*_aligned(rows), unpriced(names[role])]
        if price is not None:
            cost += (load.prompt_tokens * price.input + load.completion_tokens * price.output) / 1_000_000
    return _aligned([*rows, ("cost", f"{cost:,.2f}")])


def _rows(loads: dict[str, Load]) -> list[tuple[str, str]]:
    rows = [(f"{role} requests", f"{load.requests:,.0f}") for role, load in loads.items()]
    rows.append(("prompt tokens", f"{sum(load.prompt_tokens for load in loads.values()):,.0f}"))
    rows.append(("completion tokens", f"{sum(load.completion_tokens for load in loads.values()):,.0f}"))
    return rows


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    name, value = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"  {row[0]:<{name}}  {row[1]:>{value}}" for row in rows]
