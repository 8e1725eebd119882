"""The stages of STAIR, one call each, out of one recipe: build an artifact of a kind, or train a model on one.

Besides `pipeline`, which runs them in order, only the command line knows the training package as well as the
generators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata.recipe import Recipe, RoundsSection, load_recipe, packaged_recipe, parse_recipe
from stairdata_training.config import DpoConfig, PrmConfig, SftConfig

if TYPE_CHECKING:
    from stairdata.generators.responses.workload import OpenScorer
    from stairdata.runs.executors.executor import Execution
    from stairdata.runs.forecast import Forecast
    from stairdata.runs.options import BuildOptions
    from stairdata.runs.progress import Progress
    from stairdata.serving.app import Service
    from stairdata.serving.limits import ServingLimits
    from stairdata_schemas.aliases import WaitProgress
    from stairdata_schemas.artifacts import Artifact
    from stairdata_schemas.manifest import ModelIdentity
    from stairdata_training.estimate import Estimate
    from stairdata_training.output import TrainingSummary
    from stairdata_training.scoring import PrmScorer
    from stairdata_training.trainers.method import Method

BUILT_KINDS = ("prompts", "structured_cot", "trees", "preference_pairs", "prm_pairs", "responses", "evaluations")


class FullRecipe(Recipe):
    """One YAML file, one section a stage."""

    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    prm: PrmConfig = PrmConfig()
    rounds: RoundsSection = RoundsSection()


def read_full_recipe(path: Path | None, overrides: Sequence[str] = ()) -> FullRecipe:
    """Read a recipe with all its sections.

    Args:
        path: a YAML file, or the name of a recipe that comes with the package; None is all defaults.
        overrides: `key.key=value`, whose values are YAML.

    Raises:
        RecipeError: the file can't be read, isn't YAML, or has an unknown key or a wrong value.
        UsageError: an override that isn't `key=value`.
    """
    return load_recipe(FullRecipe, packaged_recipe(path), list(overrides))


def parse_full_recipe(sections: Mapping[str, Any]) -> FullRecipe:
    """Make a recipe of its sections.

    Raises:
        RecipeError: an unknown key or a wrong value.
    """
    return parse_recipe(FullRecipe, sections)


def build_kind(kind: str, recipe: FullRecipe, options: BuildOptions, **own: Any) -> Artifact | None:
    """Run the generator of a kind.

    Args:
        kind: one of `BUILT_KINDS`.
        recipe: all sections.
        options: where, from what, how much.
        own: what not all kinds take: `execution` of those that ask models, `rejudge` of trees, `asking` of
            structured_cot, `reviews` of preference_pairs.

    Returns:
        The artifact; None where a batch leaves it unfinished.

    Raises:
        UsageError: an unknown kind.
        StairDataError: as the kind's generator says.
    """
    from stairdata_schemas.errors import UsageError, quote, suggest

    name = kind.replace("-", "_")
    if name not in BUILT_KINDS:
        raise UsageError(f"can't build {quote(kind)}; {suggest(kind, BUILT_KINDS)}")
    return _generator(name)(recipe, options, **own)


def _generator(kind: str) -> Callable[..., Artifact | None]:
    """Import one generator alone: what talks to models takes longer to import than pairs take to build."""
    if kind == "prompts":
        from stairdata.generators.prompts.build import build_prompts

        return build_prompts
    if kind == "structured_cot":
        from stairdata.generators.structured_cot.build import build_structured_cot

        return build_structured_cot
    if kind == "trees":
        from stairdata.generators.trees.build import build_trees

        return build_trees
    if kind == "responses":
        return build_responses
    if kind == "evaluations":
        return build_evaluations
    from stairdata.generators.pairs.build import build_preference_pairs, build_prm_pairs

    return build_preference_pairs if kind == "preference_pairs" else build_prm_pairs


def build_responses(recipe: FullRecipe, options: BuildOptions, execution: Execution | None = None) -> Artifact | None:
    """Build responses with the recipe's process reward model: generators don't know the training package."""
    from stairdata.generators.responses.build import build_responses_in_rounds as build
    from stairdata.runs.executors.executor import HERE

    return build(recipe, options, *_scoring(recipe, execution or HERE), execution or HERE)


def build_evaluations(recipe: FullRecipe, options: BuildOptions, execution: Execution | None = None) -> Artifact | None:
    """Build evaluations, where `responses` has a process reward model with that."""
    from stairdata.generators.evaluations.build import build_evaluations_in_rounds as build
    from stairdata.runs.executors.executor import HERE

    return build(recipe, options, *_scoring(recipe, execution or HERE), execution or HERE)


def forecast_evaluations(recipe: FullRecipe, options: BuildOptions, execution: Execution | None = None) -> Forecast:
    """Forecast a build of evaluations."""
    from stairdata.generators.evaluations.cost_estimate import forecast_evaluations as forecast
    from stairdata.runs.executors.executor import HERE

    return forecast(recipe, options, _scoring(recipe, execution or HERE)[0], execution or HERE)


def _scoring(recipe: FullRecipe, execution: Execution) -> tuple[ModelIdentity | None, OpenScorer | None]:
    """Say which process reward model the recipe names, and how it is opened."""
    named = recipe.responses.prm
    if named is None:
        return None, None
    from stairdata.scorers.opening import identify_prm, open_scorer
    from stairdata_training.models import scoring_dtype

    opening = partial(open_scorer, recipe, _load_prm, urls=execution.of_role("prm"))
    return identify_prm(named, scoring_dtype()), opening


def _load_prm(folder: str) -> PrmScorer:
    """Load a process reward model for this process.

    Raises:
        ModelError: there is none.
        TrainingError: the training extra is missing.
    """
    try:
        from stairdata_training.scoring import PrmScorer

        return PrmScorer.load(folder)
    except ImportError as error:
        from stairdata_schemas.errors import TrainingError

        raise TrainingError(
            f"a process reward model in this process needs {error.name}: pip install 'stairdata[training]'"
        ) from error


def open_service(
    recipe: FullRecipe,
    name: str,
    log: Path,
    limits: ServingLimits,
    waiting: WaitProgress,
    *,
    hides_reasoning: bool = False,
) -> AbstractAsyncContextManager[Service]:
    """Open a service that answers by the recipe's method, as `serving.search.open_service` does."""
    from stairdata.serving import search

    return search.open_service(recipe, name, _load_prm, log, limits, waiting, hides_reasoning=hides_reasoning)


def train_stage(
    stage: str,
    recipe: FullRecipe,
    artifact: Artifact,
    model: str,
    output: Path,
    progress: Progress,
    *,
    evaluation: Artifact | None = None,
    fresh: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainingSummary:
    """Run one training stage.

    Args:
        stage: sft, dpo or prm.
        recipe: all sections.
        artifact: what to train on.
        model: model folder or Hub id to start from.
        output: folder of the finished model.
        progress: told each step.
        evaluation: held-out pairs on which the model is measured.
        fresh: replace unfinished work, and a model of other data or settings.
        tell: called with sentences on the rows, and with warnings.

    Raises:
        TrainingError: the training extra is missing, or the data would train something else than meant.
    """
    from stairdata_training.plan import TrainingPlan

    plan = TrainingPlan(stage, artifact, model, output, getattr(recipe, stage), evaluation, fresh)
    done = plan.finished() if plan.processes == 1 else None
    if done is not None:
        return done  # before torch is imported, which takes seconds
    method = _training_method(stage, recipe)
    from stairdata_training import running

    def on_progress(step: int, steps: int, logs: dict[str, float]) -> None:
        loss = f" (loss {logs['loss']:.3f})" if "loss" in logs else ""
        progress(f"train {stage}{loss}", step, steps)

    return running.train(plan, method, on_progress, tell)


def estimate_training(stage: str, recipe: FullRecipe, artifact: Artifact, model: str, output: Path) -> Estimate:
    """Work out what a training stage would take; no weight is loaded and nothing is written.

    Raises:
        TrainingError: as for `train_stage`.
    """
    from stairdata_training.plan import TrainingPlan

    plan = TrainingPlan(stage, artifact, model, output, getattr(recipe, stage))
    method = _training_method(stage, recipe)
    from stairdata_training.estimate import estimate
    from stairdata_training.running import quiet

    with quiet():
        return estimate(plan, method)


def _training_method(stage: str, recipe: FullRecipe) -> Method:
    _prepare_libraries()
    from stairdata_training.dpo import DPO
    from stairdata_training.prm import PRM
    from stairdata_training.sft import sft_method

    return {"sft": sft_method(recipe.sft), "dpo": DPO, "prm": PRM}[stage]


def _prepare_libraries() -> None:
    """Check that the training extra is there, and keep its notes off the terminal.

    Raises:
        TrainingError: it is not.
    """
    from stairdata_schemas.errors import TrainingError

    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise TrainingError(f"training needs {error.name}: pip install 'stairdata[training]'") from error
    from transformers.utils import logging

    logging.set_verbosity_error()
