"""What a build would ask of the models, and what that would cost, before it is paid for.

From the recipe alone the search is run on a made-up policy, so the number of requests follows the real algorithm and
only lengths are assumed. From a pilot everything is measured: its rows are kept, and the build continues from them.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from stairdata.generators.prompts.build import questions_of
from stairdata.generators.prompts.task_labels import template
from stairdata.generators.responses.build import plan_responses
from stairdata.generators.responses.cost_estimate import (
    PRM,
    SIMULATED,
    STEP_TOKENS,
    STEPS,
    Load,
    answering_load,
    cost_of,
    made_up_result,
    prm_name,
)
from stairdata.generators.trees.build import grow_trees, plan_trees, units_of
from stairdata.generators.trees.rejudging import plan_rejudging
from stairdata.generators.trees.tree_runner import search_config
from stairdata.llm.budget import Budget, unpriced
from stairdata.recipe import Recipe
from stairdata.runs.batching.cost import in_batches
from stairdata.runs.build import is_finished
from stairdata.runs.executors.checks import check_execution
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.forecast import Forecast, ModelLoad
from stairdata.runs.inputs import Inputs, input_rows
from stairdata.runs.options import BuildOptions
from stairdata.runs.runner import open_budget
from stairdata.runs.unfinished import find_before, rows_in, words_on
from stairdata.search import mcts
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import Build, begin_build
from stairdata_schemas.errors import BuildError
from stairdata_schemas.kinds import TASKS

RATING_TOKENS = 40
LABEL_TOKENS = 5
JUDGE_PROMPT_TOKENS = 250  # the template, without prompt and answer
BYTES_PER_TOKEN = 4


class StageLoad(NamedTuple):
    """What a stage asks of those who write and of those who rate."""

    writing: Load
    rating: Load


def forecast_trees(
    recipe: Recipe,
    options: BuildOptions,
    execution: Execution = HERE,
    pilot: int | None = None,
    rejudge: str | None = None,
) -> Forecast:
    """Forecast a build of trees; nothing is asked and written but for a pilot.

    Args:
        recipe: sections `actor`, `trees` and `prices`.
        options: where and from what.
        execution: where the trees of a pilot are grown.
        pilot: grow that many trees, keep them, and extrapolate from them.
        rejudge: reference of trees that are to be rated again.
    """
    if rejudge is not None:
        return _of_rejudging(recipe, options, rejudge, execution)
    prompts = Inputs(options.inputs, options.root).of("prompts")
    if pilot is not None:
        return _measured(recipe, prompts, options, execution, pilot)
    there = find_before("trees", lambda: plan_trees(recipe, prompts, options, execution), options)
    if isinstance(there, Artifact):
        return Forecast("trees", finished=there.reference)
    units = units_of(recipe, prompts, options)
    grown = rows_in(there)
    units = [unit for unit in units if unit.key not in grown]
    total = StageLoad(Load(), Load())
    for task in TASKS:
        lengths = [len(unit.text.encode()) for unit in units if unit.payload["task"] == task]
        if lengths:
            mean = sum(lengths) / len(lengths) / BYTES_PER_TOKEN
            one = simulate(recipe, task, mean)
            total = StageLoad(
                total.writing.plus(*one.writing.times(len(lengths))), total.rating.plus(*one.rating.times(len(lengths)))
            )
    assumed = f"{STEPS} steps an answer, {STEP_TOKENS} tokens a step, {RATING_TOKENS} a rating, no step twice"
    head = f"trees: {len(units)} to grow{words_on('trees', there, len(grown))}"
    head += f"\nassumed, not measured: {assumed}; --pilot N measures"
    loads = [("generation", recipe.actor.name, total.writing), *_shared_out(recipe, total.rating)]
    return _forecast("trees", head, recipe, loads)


def _of_rejudging(recipe: Recipe, options: BuildOptions, reference: str, execution: Execution) -> Forecast:
    job = plan_rejudging(recipe, reference, options, execution)
    there = find_before("trees", lambda: job.plan, options)
    if isinstance(there, Artifact):
        return Forecast("trees", finished=there.reference)
    rated = rows_in(there)
    rating = Load()
    trees = [tree for tree in job.stored if tree.tree_id not in rated]
    for tree in trees:
        tokens = len(tree.prompt.encode()) / BYTES_PER_TOKEN
        rating = rating.plus(*_rating(recipe, tree.task or "", tokens).times(tree.answers))
    answers = sum(tree.answers for tree in trees)
    head = f"trees: {answers:,} answers of {len(trees)} trees to rate{words_on('trees', there, len(rated))}"
    head += f"\nassumed, not measured: {STEPS} steps an answer, {STEP_TOKENS} tokens a step, {RATING_TOKENS} a rating, "
    head += "no answer twice in a tree"
    return _forecast("trees", head, recipe, _shared_out(recipe, rating))


def _shared_out(recipe: Recipe, rating: Load) -> list[tuple[str, str, Load]]:
    """Return the load of each model that rates: a guard and whoever rates helpfulness have half of it each."""
    judge = recipe.trees.judge
    named = (judge.endpoint or recipe.actor).name
    if judge.kind != "guard":
        return [("judge", named, rating)]
    half = rating.times(0.5)
    return [("judge", named, half), ("helpfulness judge", (judge.helpfulness or recipe.actor).name, half)]


def forecast_responses(recipe: Recipe, options: BuildOptions) -> Forecast:
    """Forecast a build of responses."""
    parent = Inputs(options.inputs, options.root).of("prompts")
    prompts = [row["prompt"] for row in input_rows(parent, ["prompt"], options.limit)]
    section, count = recipe.responses, len(prompts)
    read = sum(len(prompt.encode()) for prompt in prompts) / BYTES_PER_TOKEN
    prompt_tokens = read / count if count else 0.0
    one = answering_load(section, prompt_tokens)
    head = f"responses: {count} prompts"
    head += f"\nassumed, not measured: {STEPS} steps an answer, {STEP_TOKENS} tokens a step"
    head += ", no step twice, scores at random" if section.method == "beam" else ""
    loads = [("generation", recipe.actor.name, one.writing.times(count))]
    if section.prm is not None:
        loads.append((PRM, prm_name(section.prm), one.scoring.times(count)))
    live = _forecast("responses", head, recipe, loads)
    if options.batch is None:
        return live
    there = find_before("responses", lambda: plan_responses(recipe, parent, options), options)
    return in_batches(live, {"generation"}, recipe.prices, there)


def forecast_prompts(recipe: Recipe, options: BuildOptions) -> Forecast:
    """Forecast a build of prompts: what the judge of tasks and the teacher of twins would be asked, if there are."""
    judge, twins = recipe.prompts.task_judge, recipe.prompts.twins
    if judge is None and twins is None:
        return Forecast("prompts")
    asked = questions_of(recipe, options)
    heads, assumed, loads = [], [], []
    if judge is not None:
        question = len(template().render(prompt="").encode())
        count = len(asked.without_task)
        read = sum(len(prompt.encode()) + question for prompt in asked.without_task) / BYTES_PER_TOKEN
        heads.append(f"{count} without a task")
        assumed.append(f"{LABEL_TOKENS} tokens an answer")
        loads.append(("generation", judge.name, Load(count, read, count * LABEL_TOKENS)))
    if twins is not None:
        read = sum(len(each.question.encode()) for each in asked.for_twins) / BYTES_PER_TOKEN
        written = sum(len(each.prompt.encode()) for each in asked.for_twins) / BYTES_PER_TOKEN
        heads.append(f"{len(asked.for_twins)} twins to write" + (" at most" if asked.without_task else ""))
        assumed.append("a twin as long as its prompt, and none asked for again")
        loads.append(("twins", twins.teacher.name, Load(len(asked.for_twins), read, written)))
    head = f"prompts: {', '.join(heads)}\nassumed, not measured: {'; '.join(assumed)}"
    return _forecast("prompts", head, recipe, loads)


def simulate(recipe: Recipe, task: str, prompt_tokens: float) -> StageLoad:
    """Grow trees on a made-up policy and count what they would ask, as a mean.

    Args:
        recipe: section `trees`.
        task: decides what a judge of kind rule is asked.
        prompt_tokens: length of the rendered prompt.
    """
    one, writing, rating = _rating(recipe, task, prompt_tokens), Load(), Load()
    for seed in range(SIMULATED):
        rng = random.Random(seed)  # noqa: S311
        search = mcts.search(search_config(recipe.trees), rng)
        batch = next(search)
        try:
            while True:
                results = []
                for request in batch:
                    result, written = made_up_result(request, rng)
                    results.append(result)
                    if isinstance(request, mcts.JudgeAnswer):
                        rating = rating.plus(*one)
                    else:
                        read = prompt_tokens + STEP_TOKENS * request.prefix.count("\n")
                        writing = writing.plus(1, read, written)
                batch = search.send(results)
        except StopIteration:
            pass
    return StageLoad(writing.times(1 / SIMULATED), rating.times(1 / SIMULATED))


def _rating(recipe: Recipe, task: str, prompt_tokens: float) -> Load:
    """Return what it takes to rate one answer."""
    asks = _ratings_of(recipe, task)
    read = JUDGE_PROMPT_TOKENS + prompt_tokens + STEP_TOKENS * STEPS
    return Load(asks, asks * read, asks * (1 if recipe.trees.judge.style == "direct" else RATING_TOKENS))


def _ratings_of(recipe: Recipe, task: str) -> int:
    kind = recipe.trees.judge.kind
    if kind == "rule":
        return 1 if task == "helpfulness" else 0
    return 0 if kind == "reference" else 2


def _measured(recipe: Recipe, prompts: Artifact, options: BuildOptions, execution: Execution, pilot: int) -> Forecast:
    plan = plan_trees(recipe, prompts, options, execution)
    if not is_finished(plan, options):
        check_execution([recipe.actor], execution, recipe, "trees")
    build = begin_build(plan, options.root, options.version, fresh=options.fresh)
    if isinstance(build, Artifact):
        return Forecast("trees", finished=build.reference)
    with build:
        budget, units = open_budget(build, recipe, options), units_of(recipe, prompts, options)
        result = grow_trees(build, recipe, units, options, budget, execution, pilot=pilot)
        grown = result.outcomes["ok"]
        if not grown:
            raise BuildError(f"{build.reference}: the pilot grew no tree; its outcomes: {result.outcomes}")
        load = Load(*result.usage.model_dump(exclude={"cost", "reasoning_tokens"}).values())
        return _extrapolated(build, budget, load, grown, len(units))


def _extrapolated(build: Build, budget: Budget, load: Load, grown: int, total: int) -> Forecast:
    whole = load.times(total / grown)
    cost = budget.spent.cost * total / grown if budget.prices else None
    rows = _rows([("all", "", whole)])
    if cost is not None:
        rows.append(("cost", f"{cost:,.2f}"))
    head = f"trees: {total} in all, {grown} of them grown and kept for {build.reference}"
    head += f"\nextrapolated from those {grown}:"
    name = build.plan.models[0].name
    return Forecast("trees", "\n".join([head, *_aligned(rows)]), (_model_load("all", name, whole, cost),))


def _forecast(kind: str, head: str, recipe: Recipe, loads: list[tuple[str, str, Load]]) -> Forecast:
    """Return the forecast of some models' loads, each with its role and the model's name."""
    models = tuple(_model_load(role, name, load, cost_of(recipe, role, name, load)) for role, name, load in loads)
    without = next((each.name for each in models if each.cost is None and each.requests), None)
    if without is not None:
        words = [head, *_aligned(_rows(loads)), unpriced(without)]
    else:
        cost = sum(each.cost or 0.0 for each in models)
        words = [head, *_aligned([*_rows(loads), ("cost", f"{cost:,.2f}")])]
    return Forecast(kind, "\n".join(words), models)


def _model_load(role: str, name: str, load: Load, cost: float | None) -> ModelLoad:
    return ModelLoad(role, name, round(load.requests), round(load.prompt_tokens), round(load.completion_tokens), cost)


def _rows(loads: list[tuple[str, str, Load]]) -> list[tuple[str, str]]:
    asked = [(role, load) for role, _, load in loads if role != PRM]
    rows = [(f"{role} requests", f"{load.requests:,.0f}") for role, load in asked]
    rows.append(("prompt tokens", f"{sum(load.prompt_tokens for _, load in asked):,.0f}"))
    rows.append(("completion tokens", f"{sum(load.completion_tokens for _, load in asked):,.0f}"))
    for role, _, load in loads:
        if role == PRM:
            rows += [("PRM calls", f"{load.requests:,.0f}"), ("PRM tokens", f"{load.prompt_tokens:,.0f}")]
    return rows


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    name, value = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"  {row[0]:<{name}}  {row[1]:>{value}}" for row in rows]
