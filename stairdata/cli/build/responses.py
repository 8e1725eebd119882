"""`stairdata build responses`."""

from __future__ import annotations

from stairdata.cli.build.batching import BatchFilesOption, BatchOption
from stairdata.cli.build.shared import ExecutionOptions, ShardOption, SharedOptions, takes_shared_options


@takes_shared_options
def build(
    shared: SharedOptions,
    servers: ExecutionOptions,
    batch: BatchOption = None,
    batch_files: BatchFilesOption = None,
    shard: ShardOption = None,
) -> None:
    """Build answers of the actor to prompts: one, or the best of n by a process reward model."""
    from stairdata.generators.forecast import forecast_responses
    from stairdata.stages import build_responses

    recipe, execution = shared.read_recipe(), servers.execution("responses")
    shared.run(
        lambda options: forecast_responses(recipe, options),
        lambda options: build_responses(recipe, options, execution),
        shard,
        batch,
        batch_files,
    )
