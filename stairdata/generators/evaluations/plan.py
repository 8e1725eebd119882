"""From the recipe and the inputs to the rows that are to be made, and to what decides them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stairdata.generators.evaluations.answering import SampledAnswer
from stairdata.generators.evaluations.attacks import Attack, attacked_prompts, plan_attacks
from stairdata.generators.evaluations.benchmarks import (
    BenchmarkPrompt,
    load_benchmarks,
    pin_benchmarks,
)
from stairdata.generators.evaluations.contamination import SeenPrompts, seen_in_training
from stairdata.generators.evaluations.judging.answer_judge import JudgeWords
from stairdata.generators.evaluations.judging.matching import MATCHED
from stairdata.generators.evaluations.rows import NO_ATTACK, EvaluationUnit
from stairdata.generators.responses.answering import resolved_settings
from stairdata.llm.session import identify, served_model
from stairdata.recipe import Endpoint, Recipe
from stairdata.recipe.benchmarks import BenchmarkScore
from stairdata.recipe.evaluations import EvaluatedModel
from stairdata.runs.executors.checks import at_endpoints, roles_at_endpoints
from stairdata.runs.executors.executor import HERE, Execution
from stairdata.runs.inputs import Inputs
from stairdata.runs.options import BuildOptions
from stairdata.runs.units import Unit
from stairdata_schemas import identity
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.building import BuildPlan
from stairdata_schemas.errors import RecipeError, UsageError, quote
from stairdata_schemas.fingerprints import counted_settings
from stairdata_schemas.licenses import strictest
from stairdata_schemas.manifest import ModelIdentity
from stairdata_schemas.quarantine import QuarantineRow

GENERATOR = "evaluations/1"
OWN_BENCHMARK = "responses"
"""What rows call the prompts of a responses artifact, where the recipe names no benchmark."""
HASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class ModelUnderTest:
    """A model that is to answer."""

    endpoint: Endpoint
    identity: ModelIdentity
    is_chat: bool

    @property
    def label(self) -> str:
        """What rows call it."""
        return model_label(self.identity.name, self.identity.revision)


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """All that is known before anything is asked."""

    recipe: Recipe
    models: list[ModelUnderTest]
    """None where the answers are given."""
    attacks: dict[str, Attack]
    words: JudgeWords
    plan: BuildPlan
    units: list[EvaluationUnit]
    refused: list[QuarantineRow]
    """Rows of benchmarks that can't be taken."""
    contamination: dict[str, Row]
    """By model: which prompts its training has seen, and what could not be looked at."""

    def as_units(self) -> list[Unit]:
        """Return the rows as units of work; those of one model and prompt, which share answers, are a group."""
        groups: dict[tuple[str, str], int] = {}
        return [
            Unit(
                row.key,
                number,
                row.prompt,
                row._asdict(),
                groups.setdefault((row.model, row.prompt_id), len(groups)),
            )
            for number, row in enumerate(self.units)
        ]


def model_label(name: str, revision: str | None) -> str:
    """Return what rows call a model: two folders of one name are two models by their hashes."""
    return f"{name}@{revision[:HASH_DIGITS]}" if revision else name


def make_job(
    recipe: Recipe, options: BuildOptions, prm: ModelIdentity | None = None, execution: Execution = HERE
) -> EvaluationJob:
    """Look all up that decides the rows: benchmarks, models, attacks, judge, or the artifacts with the answers.

    Args:
        recipe: sections `actor`, `responses` and `evaluations`.
        options: where and from what.
        prm: which process reward model scores answers.
        execution: where the servers of the one tested model are, and of those who judge, attack and score.

    Raises:
        RecipeError: no benchmark, no model, two models that can't be told apart, or an attack that a model can't be put
            through.
        UsageError: an attack, `exclude_seen`, or servers or replicas for a tested model, and the answers are given;
            inputs that hold the same answer twice; endpoints of several models or of one that nobody asks.
        InputError: a benchmark that can't be read.
    """
    section = recipe.evaluations
    attacks = {attack.name: attack for attack in plan_attacks(section.attacks)}
    given = _given_responses(options)
    if execution != HERE:
        recipe = _at_endpoints(recipe, execution, given)
    if not section.benchmarks and not given:
        raise RecipeError(
            "evaluations.benchmarks is empty; name at least one, such as {name: xstest, path: FILE}, or give a "
            "responses artifact as --input"
        )
    if given and set(attacks) != {NO_ATTACK}:
        other = next(name for name in attacks if name != NO_ATTACK)
        raise UsageError(
            f"the attack {quote(other)} has to be made before a model answers, and the answers of {given[0].reference} "
            "are given; leave --input out, so that the models answer, or set evaluations.attacks to [none]"
        )
    if given and section.exclude_seen:
        raise UsageError(
            f"what a model saw in training is known of model folders, and the answers of {given[0].reference} are "
            "given; leave --exclude-seen out, or leave --input out, so that the models answer"
        )
    pinned = pin_benchmarks(section.benchmarks)
    refused: list[QuarantineRow] = []
    prompts = load_benchmarks(pinned, recipe.seed, refused)
    scores: dict[str, BenchmarkScore] = {each.name: each.score for each in pinned} or {OWN_BENCHMARK: "refusal"}
    judge = _judge_identity(recipe)
    words = JudgeWords(
        section.judge, model_label(judge.name, judge.revision) if judge else None, list(dict.fromkeys(scores.values()))
    )
    asks_judge = any(map(words.asks, scores.values()))
    asked = _asked_roles(attacks, asks_judge=asks_judge, asks_models=not given)
    recipe = roles_at_endpoints(recipe, "evaluations", execution, asked)
    models = [] if given else tested_models(recipe)
    if not given:
        _check_models(recipe, models, attacks)
    rows = _Rows(recipe, words, scores, prompts, prm)
    seen: dict[str, SeenPrompts] = {}
    if given:
        units = list(rows.of_responses(given, options.limit))
    else:
        units = list(rows.of_models(models, attacks, prompts[: options.limit]))
        seen = {model.label: found for model in models if (found := _seen_by(model, options)) is not None}
    found_in = {
        (unit.model, unit.prompt_id): place
        for unit in units
        if unit.model in seen and (place := seen[unit.model].find(unit.prompt_id, unit.prompt)) is not None
    }
    if section.exclude_seen:
        units = [unit for unit in units if (unit.model, unit.prompt_id) not in found_in]
    _check_keys(units)
    configuration = _configuration(recipe, options, words) | {"benchmarks": [each.described for each in pinned]}
    if section.exclude_seen:
        configuration["left_out"] = sorted(map(list, found_in))
    named = [model.identity for model in models] + ([judge] if judge else [])
    if not given:
        configuration |= _answering_settings(recipe, attacks)
        named += [*_attacker_identity(recipe, attacks), *([prm] if prm else [])]
    plan = BuildPlan(
        "evaluations",
        GENERATOR,
        configuration,
        settings={
            "evaluations": recipe.evaluations.model_dump(mode="json"),
            "actor": recipe.actor.model_dump(mode="json"),
        },
        parents=[artifact.as_parent() for artifact in given],
        models=named,
        inputs={f"benchmarks/{each.name}": each.sha256 for each in pinned if each.sha256},
        seeds={"sampling": recipe.seed},
        license=strictest(each.source.source.license for each in pinned) if pinned else None,
    )
    contamination = _contamination(seen, found_in)
    return EvaluationJob(recipe, models, attacks, words, plan, units, refused, contamination)


def _at_endpoints(recipe: Recipe, execution: Execution, given: Sequence[Artifact]) -> Recipe:
    """Return the recipe with its one tested model at the endpoints."""
    if execution.executor != "ray" and not execution.endpoints:
        return recipe
    option = "--executor ray" if execution.executor == "ray" else "--endpoints"
    if given:
        raise UsageError(
            f"{option} spreads the work of the tested model, and the answers of {given[0].reference} are given; leave "
            f"{option} out (--shard spreads judging); give the judge's servers as --endpoints judge=URL,URL"
        )
    section, actor = recipe.evaluations, recipe.actor
    with_actor = section.with_actor and bool(actor.path or actor.base_url or actor.model)
    tested = len(section.models) + with_actor
    if tested > 1:
        raise UsageError(f"{option} spreads the work of one model, and {tested} are tested; test one in each build")
    if section.models:
        model = section.models[0]
        there = at_endpoints(model, execution, "evaluations.models", needs_tokenizer=not model.is_chat)
        return recipe.model_copy(update={"evaluations": section.model_copy(update={"models": [there]})})
    return recipe.model_copy(update={"actor": at_endpoints(actor, execution, "actor")})


def _asked_roles(attacks: dict[str, Attack], *, asks_judge: bool, asks_models: bool) -> list[str]:
    """Return the roles of the models that are asked besides the tested ones."""
    asks_attacker = asks_models and any(attack.asks_attacker for attack in attacks.values())
    asks = {"judge": asks_judge, "attacker": asks_attacker, "prm": asks_models}
    return [role for role, is_asked in asks.items() if is_asked]


def tested_models(recipe: Recipe) -> list[ModelUnderTest]:
    """Return the recipe's actor, and the further models.

    Raises:
        RecipeError: there is none, or two can't be told apart.
    """
    section = recipe.evaluations
    endpoints: list[Endpoint] = list(section.models)
    if section.with_actor and (recipe.actor.path or recipe.actor.base_url):
        endpoints.insert(0, recipe.actor)
    if not endpoints:
        raise RecipeError(
            "no model to test: give actor.path or actor.base_url, or evaluations.models, or a responses artifact as "
            "--input"
        )
    models = [_tested(endpoint, number) for number, endpoint in enumerate(endpoints)]
    labels = [model.label for model in models]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise RecipeError(
            f"two of the tested models are {quote(twice[0])}, by name and weights; leave one out, or give as tokenizer "
            "the folder of the model that a server serves, so that its hash is known"
        )
    return models


def _tested(endpoint: Endpoint, number: int) -> ModelUnderTest:
    is_chat = isinstance(endpoint, EvaluatedModel) and endpoint.is_chat
    role = "actor" if number == 0 else f"model_{number}"
    known = identify(endpoint, role, needs_tokenizer=not is_chat)
    return ModelUnderTest(endpoint, served_model(endpoint, known), is_chat)


def _seen_by(model: ModelUnderTest, options: BuildOptions) -> SeenPrompts | None:
    """Return what a model was trained on, where its folder is here."""
    folder = Path(model.endpoint.path or model.endpoint.tokenizer or "")
    return seen_in_training(folder, options.root) if model.identity.revision and folder.is_dir() else None


def _contamination(seen: dict[str, SeenPrompts], found_in: dict[tuple[str, str], str]) -> dict[str, Row]:
    return {
        model: {
            "prompts": {prompt_id: place for (label, prompt_id), place in found_in.items() if label == model},
            "looked_at": prompts.looked_at,
            "missing": prompts.missing,
        }
        for model, prompts in seen.items()
    }


def _check_models(recipe: Recipe, models: Sequence[ModelUnderTest], attacks: dict[str, Attack]) -> None:
    by_chat = next((model for model in models if model.is_chat), None)
    if by_chat is None:
        return
    beginning = next((attack.name for attack in attacks.values() if attack.needs_completions), None)
    if beginning is not None:
        raise RecipeError(
            f"the attack {quote(beginning)} begins the answer for the model, which needs completions, and "
            f"{quote(by_chat.label)} is asked by chat; give its tokenizer (and a server with /v1/completions), or "
            "leave the attack out"
        )
    if recipe.responses.method != "sample":
        raise RecipeError(
            f"responses.method {recipe.responses.method} goes on from half an answer, which needs completions, and "
            f"{quote(by_chat.label)} is asked by chat; give its tokenizer, or set responses.method to sample"
        )


def _given_responses(options: BuildOptions) -> list[Artifact]:
    return Inputs(options.inputs, options.root).all_of("responses") if options.inputs else []


def _judge_identity(recipe: Recipe) -> ModelIdentity | None:
    judge = recipe.evaluations.judge
    if judge.kind == "rule":
        return None
    known = identify(judge, "judge", needs_tokenizer=False)
    return served_model(judge, known)


class _Rows:
    """Lists the rows that are to be made."""

    def __init__(
        self,
        recipe: Recipe,
        words: JudgeWords,
        scores: dict[str, BenchmarkScore],
        prompts: Sequence[BenchmarkPrompt],
        prm: ModelIdentity | None,
    ) -> None:
        self._recipe = recipe
        self._prm = prm
        self._words = words
        self._scores = scores
        self._prompts = prompts
        self._seen: set[tuple[str, int]] = set()
        labels: dict[tuple[str, str | None], set[str]] = defaultdict(set)
        for prompt in prompts:
            if prompt.label is not None:
                labels[prompt.benchmark, prompt.category].add(prompt.label)
        self._labels = {place: sorted(found) for place, found in labels.items()}

    def of_models(
        self, models: Sequence[ModelUnderTest], attacks: dict[str, Attack], prompts: Sequence[BenchmarkPrompt]
    ) -> Iterator[EvaluationUnit]:
        """List rows of models that are to answer, one model after the other."""
        section, seed = self._recipe.responses, self._recipe.seed
        samples = section.n if section.method == "sample" else 1
        chosen = attacked_prompts(prompts, self._recipe.evaluations.attacks, seed)
        for model in models:
            for prompt in prompts:
                for name, attack in attacks.items():
                    if name != NO_ATTACK and (prompt.benchmark, prompt.prompt_id) not in chosen:
                        continue
                    made_by = self._made_by(model, attack)
                    response_id = identity.response_id(prompt.prompt_id, made_by, seed)
                    for sample in range(samples):
                        yield from self._of_answer(
                            prompt,
                            attack=name,
                            model=model.label,
                            method=section.method,
                            response_id=response_id,
                            sample=sample,
                        )

    def _made_by(self, model: ModelUnderTest, attack: Attack) -> Row:
        """Return what decides an answer; without an attack the same as for a row of `responses`."""
        recipe = self._recipe
        models = [each.model_dump(exclude={"role"}) for each in (model.identity, self._prm) if each]
        made_by: Row = {"models": models, "responses": resolved_settings(recipe.responses)}
        if attack.name == NO_ATTACK:
            return made_by
        attacker = [each.model_dump(exclude={"role"}) for each in _attacker_identity(recipe, {attack.name: attack})]
        return made_by | {"attack": {"name": attack.name, **attack.details}, "attacker": attacker}

    def of_responses(self, given: Sequence[Artifact], limit: int | None) -> Iterator[EvaluationUnit]:
        """List rows of answers that are given: of a sample all, of a search the chosen one."""
        by_id: dict[str, list[BenchmarkPrompt]] = defaultdict(list)
        for prompt in self._prompts:
            by_id[prompt.prompt_id].append(prompt)
        for artifact in given:
            columns = ["response_id", "prompt_id", "prompt", "task", "method", "model", "candidates", "chosen_index"]
            rows = artifact.scan().select(columns)
            revision = _revision(artifact)
            for row in (rows if limit is None else rows.head(limit)).collect().iter_rows(named=True):
                prompts = by_id[row["prompt_id"]] if self._recipe.evaluations.benchmarks else [_own(row)]
                for prompt in prompts:
                    for sample, answer in _given_answers(row):
                        yield from self._of_answer(
                            prompt,
                            attack=NO_ATTACK,
                            model=model_label(row["model"], revision),
                            method=row["method"],
                            response_id=row["response_id"],
                            sample=sample,
                            answer=list(answer),
                        )

    def _of_answer(self, prompt: BenchmarkPrompt, **of_answer: Any) -> Iterator[EvaluationUnit]:
        """List the rows of one answer: one for each of what is read of it."""
        score = self._scores[prompt.benchmark]
        wanted = self._recipe.evaluations.judge.reads
        # the last number and the class are the final answer's alone
        reads = ["answer", "whole"] if wanted == "whole" and score not in MATCHED else ["answer"]
        for each in reads:
            place = of_answer["response_id"], 0
            is_first = place not in self._seen
            self._seen.add(place)
            yield EvaluationUnit(
                prompt_id=prompt.prompt_id,
                prompt=prompt.prompt,
                benchmark=prompt.benchmark,
                score=score,
                task=prompt.task,
                category=prompt.category,
                label=prompt.label,
                reference_answer=prompt.reference_answer,
                labels=self._labels.get((prompt.benchmark, prompt.category), []),
                is_harmful=prompt.is_harmful,
                judge=self._words.name(score),
                reads=each,
                is_first=is_first,
                **of_answer,
            )


def _own(row: Row) -> BenchmarkPrompt:
    return BenchmarkPrompt(row["prompt_id"], row["prompt"], OWN_BENCHMARK, row["task"])


def _given_answers(row: Row) -> Iterator[tuple[int, SampledAnswer]]:
    candidates = row["candidates"]
    chosen = candidates if row["method"] == "sample" else [candidates[row["chosen_index"]]]
    for sample, candidate in enumerate(chosen):
        yield sample, SampledAnswer(candidate["text"], not candidate["is_complete"])


def _revision(artifact: Artifact) -> str | None:
    """Return the hash of the model that answered, as far as the artifact knows it."""
    manifest = artifact.manifest
    noted = manifest.details.get("actor") or {}
    actor = next((model for model in manifest.models if model.role == "actor"), None)
    revision = (actor.revision if actor else None) or noted.get("revision")
    return str(revision) if revision else None


def _check_keys(units: Sequence[EvaluationUnit]) -> None:
    seen: dict[str, EvaluationUnit] = {}
    for unit in units:
        if unit.key in seen:
            raise UsageError(
                f"the answer of {quote(unit.model)} to {quote(unit.prompt)} is there twice (response "
                f"{unit.response_id}, sample {unit.sample}); give only one of the artifacts as --input"
            )
        seen[unit.key] = unit
    if not units:
        raise UsageError(
            "there is nothing to evaluate: no prompt of evaluations.benchmarks is answered in the inputs; prompts are "
            "compared by prompt_id"
        )


def _configuration(recipe: Recipe, options: BuildOptions, words: JudgeWords) -> dict[str, Any]:
    return {
        "judge": counted_settings(recipe.evaluations.judge) | {"words": words.hashes},
        "seed": recipe.seed,
        "limit": options.limit,
    }


def _answering_settings(recipe: Recipe, attacks: dict[str, Attack]) -> dict[str, Any]:
    """Return what decides answers that are not given."""
    section = recipe.evaluations
    endpoints = [recipe.actor, *section.models] if section.with_actor else list(section.models)
    settings: dict[str, Any] = {
        "responses": resolved_settings(recipe.responses),
        "models": [counted_settings(each) | {"max_model_len": each.max_model_len} for each in endpoints],
        "attacks": counted_settings(section.attacks)
        | {"words": {each.name: each.details for each in attacks.values()}},
    }
    if _attacker_identity(recipe, attacks):
        assert section.attacks.attacker is not None
        settings["attacker"] = counted_settings(section.attacks.attacker)
    return settings


def _attacker_identity(recipe: Recipe, attacks: dict[str, Attack]) -> list[ModelIdentity]:
    attacker = recipe.evaluations.attacks.attacker
    if attacker is None or not any(attack.asks_attacker for attack in attacks.values()):
        return []
    return [identify(attacker, "attacker", needs_tokenizer=False)]
