"""`stairdata build structured-cot`."""

from __future__ import annotations

from typing import Annotated

import typer

from stairdata.cli.build.batching import BatchFilesOption, BatchOption
from stairdata.cli.build.shared import (
    ExecutionOptions,
    ShardOption,
    SharedOptions,
    comma_separated,
    takes_shared_options,
)


@takes_shared_options
def build(
    shared: SharedOptions,
    servers: ExecutionOptions,
    teachers: Annotated[
        str | None,
        typer.Option(
            "--teachers", metavar="A,B", help="Ask each of these teachers; the judge keeps the better answer."
        ),
    ] = None,
    batch: BatchOption = None,
    batch_files: BatchFilesOption = None,
    retry_quarantined: Annotated[
        bool,
        typer.Option("--retry-quarantined", help="Ask again where an answer was refused, and say why to the teacher."),
    ] = False,
    shard: ShardOption = None,
) -> None:
    """Build structured reasoning: by teachers, from a file or the Hub, or out of trees."""
    from stairdata.generators.structured_cot.build import build_structured_cot
    from stairdata.generators.structured_cot.cost_estimate import forecast_structured_cot
    from stairdata.generators.structured_cot.plan import TeacherOptions

    recipe, execution = shared.read_recipe(), servers.execution("structured_cot")
    action = batch.value if batch else "submit" if batch_files else None
    asking = TeacherOptions(comma_separated(teachers), action, batch_files, retry_quarantined)
    shared.run(
        lambda options: forecast_structured_cot(recipe, options, asking),
        lambda options: build_structured_cot(recipe, options, asking, execution),
        shard,
    )
