"""`stairdata build trees`."""

from __future__ import annotations

from typing import Annotated

import typer

from stairdata.cli.build.shared import COSTS, ExecutionOptions, ShardOption, SharedOptions, takes_shared_options


@takes_shared_options
def build(
    shared: SharedOptions,
    servers: ExecutionOptions,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot",
            min=1,
            help="With --dry-run: build that many rows, keep them, and extrapolate from them.",
            rich_help_panel=COSTS,
        ),
    ] = None,
    rejudge: Annotated[
        str | None,
        typer.Option(
            "--rejudge",
            metavar="REF",
            help="Sample nothing: rate the answers of these trees again, by the recipe's trees.judge, k1 and k2.",
        ),
    ] = None,
    shard: ShardOption = None,
) -> None:
    """Build search trees: SI-MCTS by the actor, one tree a prompt; or trees whose answers are rated again."""
    from stairdata.generators.forecast import forecast_trees
    from stairdata.generators.trees.build import build_trees
    from stairdata_schemas.errors import UsageError

    if pilot and not shared.dry_run:
        raise UsageError("--pilot needs --dry-run; --limit builds an artifact from the first rows")
    if pilot and rejudge:
        raise UsageError("--rejudge grows no tree, so there is no pilot; --dry-run alone counts what would be rated")
    recipe = shared.read_recipe()
    execution = servers.execution("trees")
    shared.run(
        lambda options: forecast_trees(recipe, options, execution, pilot, rejudge),
        lambda options: build_trees(recipe, options, execution, rejudge),
        shard,
    )
