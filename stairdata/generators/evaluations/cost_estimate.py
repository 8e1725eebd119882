"""What an evaluation would ask of the tested models, the attacker and the judge, before it is paid for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stairdata.generators.evaluations.plan import EvaluationJob, make_job
from stairdata.generators.evaluations.rows import NO_ATTACK, EvaluationUnit
from stairdata.generators.responses.cost_estimate import (
    PRM,
    STEP_TOKENS,
    STEPS,
    Load,
    answering_load,
    cost_of,
    prm_name,
)
from stairdata.llm.budget import unpriced
from stairdata.recipe import Recipe
from stairdata.runs.batching.cost import in_batches
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.forecast import Forecast, ModelLoad
from stairdata.runs.options import BuildOptions
from stairdata.runs.unfinished import find_before, rows_in, words_on
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.manifest import ModelIdentity

KIND = "evaluations"
ANSWER_TOKENS = STEPS * STEP_TOKENS
JUDGEMENT_TOKENS = 60
JUDGE_PROMPT_TOKENS = 250  # the rubric, without prompt and answer
ATTACK_TOKENS = 150
BYTES_PER_TOKEN = 4


def forecast_evaluations(
    recipe: Recipe, options: BuildOptions, prm: ModelIdentity | None = None, execution: Execution = HERE
) -> Forecast:
    """Forecast what is asked; benchmarks are read, and nothing is asked and written.

    An attack `pair` is forecast at its most: all its rounds and streams.
    """
    job = make_job(recipe, options, prm, execution)
    there = find_before(KIND, lambda: job.plan, options)
    if isinstance(there, Artifact):
        return Forecast(KIND, finished=there.reference)
    rows = rows_in(there)
    left = [unit for unit in job.units if unit.key not in rows]
    loads = _answering(job, left) + _attacking(job, left) + _judging(job, left)
    head = f"evaluations: {len(left):,} rows{words_on(KIND, there, len(rows))}"
    assumed = (
        f"{ANSWER_TOKENS} tokens an answer, {JUDGEMENT_TOKENS} a judgement; every pair attack takes all its rounds"
    )
    words = [head, f"assumed, not measured: {assumed}"]
    for load in loads:
        tokens = f"{load.prompt_tokens:,} prompt and {load.completion_tokens:,} completion tokens"
        cost = f", cost {load.cost:,.2f}" if load.cost is not None else f"; {unpriced(load.name)}"
        words.append(f"  {load.role} {load.name}: {load.requests:,} requests, {tokens}{cost}")
    live = Forecast(KIND, "\n".join(words), tuple(loads))
    if options.batch is None:
        return live
    tested = {model.identity.role for model in job.models} if job.recipe.evaluations.batch.answers else set()
    return in_batches(live, {"judge", *tested}, recipe.prices, there)


def _answering(job: EvaluationJob, units: Sequence[EvaluationUnit]) -> list[ModelLoad]:
    """Count the answers of each model: of a chat one request a sample, of the others what their search asks."""
    section, scoring, loads = job.recipe.responses, Load(), []
    for model in job.models:
        asked = {unit.response_id: unit.prompt for unit in units if unit.model == model.label}
        if not asked:
            continue
        read = sum(map(_tokens, asked.values()))
        if model.is_chat:
            writing = Load(1, read / len(asked), ANSWER_TOKENS).times(len(asked) * section.n)
        else:
            one = answering_load(section, read / len(asked))
            writing, scoring = one.writing.times(len(asked)), scoring.plus(*one.scoring.times(len(asked)))
        loads.append(_load(job, model.identity.role, model.endpoint.name, *map(round, writing)))
    if section.prm is not None and scoring.requests:
        loads.append(_load(job, PRM, prm_name(section.prm), *map(round, scoring)))
    return loads


def _attacking(job: EvaluationJob, units: Sequence[EvaluationUnit]) -> list[ModelLoad]:
    attacker, pair = job.recipe.evaluations.attacks.attacker, job.recipe.evaluations.attacks.pair
    attacked = {unit.response_id: unit for unit in units if unit.attack != NO_ATTACK}
    written = {
        key: job.attacks[unit.attack] for key, unit in attacked.items() if job.attacks[unit.attack].asks_attacker
    }
    if attacker is None or not written:
        return []
    turns = pair.rounds * pair.streams
    requests = sum(turns if attack.asks_target else 1 for attack in written.values())
    read = sum(_tokens(attacked[key].prompt) + JUDGE_PROMPT_TOKENS for key in written) * max(
        1, requests // len(written)
    )
    loads = [_load(job, "attacker", attacker.name, requests, read, requests * ATTACK_TOKENS)]
    searched = Counter(attacked[key].model for key, attack in written.items() if attack.asks_target)
    for model in job.models:
        if asked := searched[model.label] * turns:
            name = f"{model.identity.role} under attack"
            loads.append(_load(job, name, model.endpoint.name, asked, asked * ATTACK_TOKENS, asked * ANSWER_TOKENS))
    if searched and (judge := job.recipe.evaluations.judge).kind != "rule":
        asked = searched.total() * turns
        read = asked * (JUDGE_PROMPT_TOKENS + ANSWER_TOKENS)
        loads.append(_load(job, "judge of attacks", judge.name, asked, read, asked * JUDGEMENT_TOKENS))
    return loads


def _judging(job: EvaluationJob, units: Sequence[EvaluationUnit]) -> list[ModelLoad]:
    asks = [(unit, job.words.asks(unit.score)) for unit in units]
    requests = sum(times for _, times in asks)
    if not requests:
        return []
    read = sum(times * (_tokens(unit.prompt) + JUDGE_PROMPT_TOKENS + ANSWER_TOKENS) for unit, times in asks)
    return [_load(job, "judge", job.recipe.evaluations.judge.name, requests, read, requests * JUDGEMENT_TOKENS)]


def _load(
    job: EvaluationJob, role: str, name: str, requests: int, prompt_tokens: int, completion_tokens: int
) -> ModelLoad:
    cost = cost_of(job.recipe, role, name, Load(requests, prompt_tokens, completion_tokens))
    return ModelLoad(role, name, requests, prompt_tokens, completion_tokens, cost)


def _tokens(text: str) -> int:
    return len(text.encode()) // BYTES_PER_TOKEN
