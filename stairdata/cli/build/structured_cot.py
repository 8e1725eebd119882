"""`stairdata build structured-cot`."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from stairdata.cli.build.shared import (
    ExecutionOptions,
    ShardOption,
    SharedOptions,
    comma_separated,
    takes_shared_options,
)


class BatchAction(StrEnum):
    """What `--batch` does."""

    SUBMIT = "submit"
    STATUS = "status"
    COLLECT = "collect"
    CANCEL = "cancel"


def with_batch_action(args: list[str]) -> Iterator[str]:
    """Yield the arguments with the action that `--batch` alone means."""
    for index, this in enumerate(args):
        yield this
        if this == "--batch" and args[index + 1 : index + 2] not in [[action.value] for action in BatchAction]:
            yield BatchAction.SUBMIT.value


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
    batch: Annotated[
        BatchAction | None,
        typer.Option(
            "--batch", metavar="[ACTION]", help="Use the Batch API: submit (default), status, collect or cancel."
        ),
    ] = None,
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

    recipe, execution = shared.read_recipe(), servers.execution()
    asking = TeacherOptions(comma_separated(teachers), batch.value if batch else None, retry_quarantined)
    shared.run(
        lambda options: forecast_structured_cot(recipe, options, asking),
        lambda options: build_structured_cot(recipe, options, asking, execution),
        shard,
    )
