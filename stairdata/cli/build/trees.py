"""`stairdata build trees`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from stairdata.cli.build.shared import COSTS, ShardOption, SharedOptions, comma_separated, takes_shared_options
from stairdata.cli.options import check_url


class ExecutorName(StrEnum):
    """Where trees are grown."""

    LOCAL = "local"
    RAY = "ray"


@takes_shared_options
def build(
    shared: SharedOptions,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot",
            min=1,
            help="With --dry-run: build that many rows, keep them, and extrapolate from them.",
            rich_help_panel=COSTS,
        ),
    ] = None,
    endpoints: Annotated[
        str | None,
        typer.Option("--endpoints", metavar="URL,URL", help="Spread trees over several servers of the actor."),
    ] = None,
    executor: Annotated[
        ExecutorName,
        typer.Option("--executor", help="Where trees are grown: in this process, or by replicas on a Ray cluster."),
    ] = ExecutorName.LOCAL,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster; default: one on this machine.", show_default=False)
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
    from stairdata.runs.executors.executor import Execution
    from stairdata_schemas.errors import UsageError

    if pilot and not shared.dry_run:
        raise UsageError("--pilot needs --dry-run; --limit builds an artifact from the first rows")
    if pilot and rejudge:
        raise UsageError("--rejudge grows no tree, so there is no pilot; --dry-run alone counts what would be rated")
    recipe = shared.read_recipe()
    for url in comma_separated(endpoints):
        check_url(url, "--endpoints", "set the key as the variable that actor.api_key_env names")
    check_url(address or "", "--address", "let Ray take it from its own environment")
    execution = Execution(executor.value, address, comma_separated(endpoints))
    shared.run(
        lambda options: forecast_trees(recipe, options, execution, pilot, rejudge),
        lambda options: build_trees(recipe, options, execution, rejudge),
        shard,
    )
