"""`stairdata build KIND`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stairdata.cli.console import emit, say, show_progress
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

if TYPE_CHECKING:
    from stairdata.cli.recipes import FullRecipe
    from stairdata.generators.options import BuildOptions
    from stairdata_schemas.artifacts import Artifact
    from stairdata_training.scoring import PrmScorer


class Executor(StrEnum):
    """Where trees are grown."""

    LOCAL = "local"
    RAY = "ray"


BUILT_KINDS = ("prompts", "structured-cot", "trees", "preference-pairs", "prm-pairs", "responses")


def build(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(BUILT_KINDS)}.")],
    recipe: RecipeOption = None,
    set_: SetOption = None,
    input_: InputOption = None,
    root: RootOption = None,
    version: VersionOption = None,
    limit: LimitOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the build would ask of the models, and build nothing.")
    ] = False,
    pilot: Annotated[
        int | None, typer.Option("--pilot", min=1, help="With --dry-run: build that many rows first, and reckon on.")
    ] = None,
    max_total_tokens: Annotated[
        int | None, typer.Option("--max-total-tokens", min=1, help="Stop before the build takes more tokens.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="Stop before it costs more, by the recipe's prices.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option("--max-seconds", min=0, help="Stop after that time.")] = None,
    max_quarantine: Annotated[
        float, typer.Option("--max-quarantine", min=0, max=1, help="Largest share of refused rows.")
    ] = 0.05,
    endpoints: Annotated[
        str | None, typer.Option("--endpoints", metavar="URL,URL", help="Spread trees over servers of the actor.")
    ] = None,
    reviews: Annotated[
        str | None,
        typer.Option("--reviews", metavar="REF", help="Reviews that decide which preference pairs train."),
    ] = None,
    executor: Annotated[Executor, typer.Option("--executor", help="Where trees are grown.")] = Executor.LOCAL,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster; default: one on this machine.", show_default=False)
    ] = None,
) -> None:
    """Build an artifact; a finished one of the same recipe and inputs is returned as it is."""
    from stairdata.generators.options import BuildOptions
    from stairdata.llm.budget import Limits
    from stairdata_schemas.errors import UsageError

    if kind.replace("_", "-") not in BUILT_KINDS:
        raise UsageError(f"can't build {kind!r}; this command builds {', '.join(BUILT_KINDS)}")
    name = kind.replace("-", "_")
    if name != "trees" and (endpoints or executor is not Executor.LOCAL or address):
        raise UsageError("--endpoints, --executor and --address go with `build trees`")
    if reviews and name != "preference_pairs":
        raise UsageError("--reviews goes with `build preference-pairs`")
    if pilot and not dry_run:
        raise UsageError("--pilot goes with --dry-run; --limit builds an artifact of the first rows")
    settings = read_recipe(recipe, set_)
    with show_progress() as progress:
        options = BuildOptions(
            root_folder(root),
            version,
            tuple(input_ or ()),
            limit,
            fresh,
            max_quarantine,
            progress,
            Limits(max_total_tokens, max_cost, max_seconds),
            tuple(filter(None, (endpoints or "").split(","))),
            executor.value,
            address,
            reviews,
            pilot,
            tell=lambda words: say(words) if words else None,
        )
        if dry_run:
            emit(forecast(name, settings, options))
            return
        artifact = build_kind(name, settings, options)
    say(summary(artifact))
    emit(artifact.reference)


def forecast(kind: str, recipe: FullRecipe, options: BuildOptions) -> str:
    """Say what a build would ask of the models."""
    from stairdata.generators.forecast import forecast_build

    return forecast_build(kind, recipe, options)


def build_kind(kind: str, recipe: FullRecipe, options: BuildOptions) -> Artifact:
    """Run the generator of a kind."""
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
