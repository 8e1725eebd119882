"""`stairdata build KIND`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from stairdata.cli.console import ProgressFunction, emit, say, show_progress
from stairdata.cli.options import (
    InputOption,
    LimitOption,
    RecipeOption,
    RootOption,
    SetOption,
    VersionOption,
    read_recipe,
    root_folder,
)
from stairdata.generators.batch_actions import BATCH_ACTIONS

if TYPE_CHECKING:
    from stairdata.cli.recipes import FullRecipe
    from stairdata.generators.options import BuildOptions
    from stairdata_schemas.artifacts import Artifact
    from stairdata_training.scoring import PrmScorer


class Executor(StrEnum):
    """Where trees are grown."""

    LOCAL = "local"
    RAY = "ray"


class BuildCommand(TyperCommand):
    """Lets `--batch` stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # of a click that typer carries inside
        """Fill in what `--batch` alone means."""
        return super().parse_args(ctx, list(_with_batch_action(args)))


def _with_batch_action(args: list[str]) -> Iterator[str]:
    for index, this in enumerate(args):
        yield this
        if this == "--batch" and args[index + 1 : index + 2] not in [[action] for action in BATCH_ACTIONS]:
            yield BATCH_ACTIONS[0]


COSTS, TREES, COT = "Costs and limits", "Only for trees", "Only for structured-cot"  # headings of the help
BUILT_KINDS = ("prompts", "structured-cot", "trees", "preference-pairs", "prm-pairs", "responses")


def build(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(BUILT_KINDS)}.")],
    recipe: RecipeOption = None,
    set_: SetOption = None,
    input_: InputOption = None,
    root: RootOption = None,
    version: VersionOption = None,
    limit: LimitOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of continuing an unfinished build.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what the build would ask of the models, and build nothing.", rich_help_panel=COSTS
        ),
    ] = False,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot",
            min=1,
            help="With --dry-run: build that many rows, keep them, and reckon from them.",
            rich_help_panel=COSTS,
        ),
    ] = None,
    max_total_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-total-tokens", min=1, help="Stop before the build takes more tokens.", rich_help_panel=COSTS
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost", min=0, help="Stop before it costs more, by the recipe's prices.", rich_help_panel=COSTS
        ),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", min=0, help="Stop this run after that time.", rich_help_panel=COSTS)
    ] = None,
    max_quarantine: Annotated[
        float, typer.Option("--max-quarantine", min=0, max=1, help="Fail if a larger share of the rows is refused.")
    ] = 0.05,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(
            "--decontaminate",
            metavar="FILE",
            help="Refuse prompts that overlap with the evaluation prompts in this file; can be repeated.",
            rich_help_panel="Only for prompts",
        ),
    ] = None,
    endpoints: Annotated[
        str | None,
        typer.Option(
            "--endpoints",
            metavar="URL,URL",
            help="Spread trees over several servers of the actor.",
            rich_help_panel=TREES,
        ),
    ] = None,
    reviews: Annotated[
        str | None,
        typer.Option(
            "--reviews",
            metavar="REF",
            help="Reviews that decide which pairs train.",
            rich_help_panel="Only for preference-pairs",
        ),
    ] = None,
    executor: Annotated[
        Executor,
        typer.Option(
            "--executor",
            help="Where trees are grown: in this process, or by actors of a Ray cluster.",
            rich_help_panel=TREES,
        ),
    ] = Executor.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="Ray cluster; default: one on this machine.", show_default=False, rich_help_panel=TREES
        ),
    ] = None,
    teachers: Annotated[
        str | None,
        typer.Option(
            "--teachers",
            metavar="A,B",
            help="Ask each of these teachers; the judge keeps the better answer.",
            rich_help_panel=COT,
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="[ACTION]",
            help="Use the Batch API: submit (default), status, collect or cancel.",
            rich_help_panel=COT,
        ),
    ] = None,
    retry_quarantined: Annotated[
        bool,
        typer.Option(
            "--retry-quarantined",
            help="Ask again where an answer was refused, and tell the teacher why.",
            rich_help_panel=COT,
        ),
    ] = False,
) -> None:
    """Build an artifact; a finished one of the same recipe and inputs is returned as it is."""
    from stairdata.generators.options import BuildOptions
    from stairdata.llm.budget import BudgetLimits
    from stairdata_schemas.errors import UsageError, quote, suggest

    if kind.replace("_", "-") not in BUILT_KINDS:
        raise UsageError(f"can't build {quote(kind)}; {suggest(kind, BUILT_KINDS)}")
    name = kind.replace("-", "_")
    if name != "trees" and (endpoints or executor is not Executor.LOCAL or address):
        raise UsageError("--endpoints, --executor and --address go with `build trees`")
    if name != "structured_cot" and (teachers or batch or retry_quarantined):
        raise UsageError("--teachers, --batch and --retry-quarantined go with `build structured-cot`")
    if reviews and name != "preference_pairs":
        raise UsageError("--reviews goes with `build preference-pairs`")
    if pilot and not dry_run:
        raise UsageError("--pilot goes with --dry-run; --limit builds an artifact of the first rows")
    if name != "prompts" and decontaminate:
        raise UsageError("--decontaminate goes with `build prompts`")
    settings = with_evaluations(read_recipe(recipe, set_), decontaminate or [])
    with show_progress() as progress:
        options = BuildOptions(
            root=root_folder(root),
            version=version,
            inputs=tuple(input_ or ()),
            limit=limit,
            fresh=fresh,
            max_quarantine=max_quarantine,
            progress=progress,
            limits=BudgetLimits(max_total_tokens, max_cost, max_seconds),
            endpoints=_names(endpoints),
            executor=executor.value,
            address=address,
            reviews=reviews,
            pilot=pilot,
            teachers=_names(teachers),
            batch=batch,
            retry_quarantined=retry_quarantined,
            tell=lambda words: say(words) if words else None,
        )
        if dry_run:
            emit(forecast(name, settings, options))
            return
        artifact = build_kind(name, settings, options)
        if artifact is not None:
            _check_for_push(artifact, progress)
    if artifact is not None:
        say(summary(artifact))
        emit(artifact.reference)


def _check_for_push(artifact: Artifact, progress: ProgressFunction) -> None:
    """Check a large artifact while nobody waits for it, so that its push need not read the rows again."""
    from stairdata.hub.checks import check, is_large, is_noted

    if is_large(artifact):
        from stairdata.hub.secrets import own_secrets

        own = own_secrets()
        if not is_noted(artifact, own):  # a build that was finished before costs no hashing
            progress(f"checking {artifact.reference}", 0, 0)
            check(artifact, own)  # what it finds is told when somebody pushes


def with_evaluations(recipe: FullRecipe, given: list[str]) -> FullRecipe:
    """Add what --decontaminate names to the recipe's own evaluation prompts."""
    section = recipe.prompts
    both = [*section.decontaminate, *given]
    return recipe.model_copy(update={"prompts": section.model_copy(update={"decontaminate": both})})


def _names(text: str | None) -> tuple[str, ...]:
    """Split a list that is written with commas."""
    return tuple(filter(None, map(str.strip, (text or "").split(","))))


def forecast(kind: str, recipe: FullRecipe, options: BuildOptions) -> str:
    """Say what a build would ask of the models."""
    from stairdata.generators.forecast import forecast_build

    return forecast_build(kind, recipe, options)


def build_kind(kind: str, recipe: FullRecipe, options: BuildOptions) -> Artifact | None:
    """Run the generator of a kind; None where a batch leaves the artifact unfinished."""
    if kind in {"preference_pairs", "prm_pairs"}:  # what talks to models takes longer to import than these to build
        return _build_pairs(kind, recipe, options)
    from stairdata.generators import prompts, structured_cot, trees

    generators = {
        "prompts": prompts.build_prompts,
        "structured_cot": structured_cot.build_structured_cot,
        "trees": trees.build_trees,
        "responses": _build_responses,
    }
    return generators[kind](recipe, options)


def _build_pairs(kind: str, recipe: FullRecipe, options: BuildOptions) -> Artifact:
    from stairdata.generators import pairs

    build = pairs.build_preference_pairs if kind == "preference_pairs" else pairs.build_prm_pairs
    return build(recipe, options)


def _build_responses(recipe: FullRecipe, options: BuildOptions) -> Artifact:
    """Hand the PRM's score function down: generators don't know the training package."""
    from stairdata.generators.responses import build_responses

    if recipe.responses.prm is None:
        return build_responses(recipe, options)
    from stairdata_schemas.manifest import ModelIdentity
    from stairdata_schemas.rendering import model_hash

    folder = Path(recipe.responses.prm)
    identity = ModelIdentity(role="prm", name=folder.name, revision=model_hash(folder))

    @cache
    def scorer() -> PrmScorer:
        from stairdata_training.scoring import PrmScorer

        return PrmScorer.load(folder)

    def score(items: Sequence[tuple[str, str, bool]]) -> list[float]:
        return scorer().score(items)

    return build_responses(recipe, options, score, identity)


def summary(artifact: Artifact) -> str:
    """Say in one line what an artifact holds."""
    manifest = artifact.manifest
    parts = [f"{artifact.reference}: {manifest.rows} rows in {artifact.folder}"]
    if manifest.quarantine:
        rules = ", ".join(f"{rule} {count}" for rule, count in manifest.quarantine.items())
        parts.append(f"{sum(manifest.quarantine.values())} refused ({rules})")
    if manifest.usage.requests:
        parts.append(f"{manifest.usage.requests} requests, {manifest.usage.completion_tokens} tokens")
    if manifest.usage.cost is not None:
        parts.append(f"cost {manifest.usage.cost:.2f}")
    return "; ".join(parts)
