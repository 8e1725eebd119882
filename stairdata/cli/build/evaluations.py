"""`stairdata build evaluations`."""

from __future__ import annotations

from typing import Annotated

import typer

from stairdata.cli.build.batching import BatchFilesOption, BatchOption
from stairdata.cli.build.shared import ExecutionOptions, ShardOption, SharedOptions, takes_shared_options


@takes_shared_options
def build(
    shared: SharedOptions,
    servers: ExecutionOptions,
    exclude_seen: Annotated[
        bool,
        typer.Option("--exclude-seen", help="Leave out prompts that a tested model has seen in training."),
    ] = False,
    shard: ShardOption = None,
    batch: BatchOption = None,
    batch_files: BatchFilesOption = None,
) -> None:
    """Build judged answers to benchmarks: of models that are asked now, or of responses artifacts."""
    from stairdata.stages import build_evaluations, forecast_evaluations

    recipe, execution = shared.read_recipe(), servers.execution("evaluations")
    if exclude_seen:
        section = recipe.evaluations.model_copy(update={"exclude_seen": True})
        recipe = recipe.model_copy(update={"evaluations": section})
    shared.run(
        lambda options: forecast_evaluations(recipe, options, execution),
        lambda options: build_evaluations(recipe, options, execution),
        shard,
        batch=batch,
        batch_files=batch_files,
    )
