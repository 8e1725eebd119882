"""`stairdata build prompts`."""

from __future__ import annotations

from typing import Annotated

import typer

from stairdata.cli.build.shared import ExecutionOptions, SharedOptions, takes_shared_options


@takes_shared_options
def build(
    shared: SharedOptions,
    servers: ExecutionOptions,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(
            "--decontaminate",
            metavar="FILE",
            help="Refuse prompts that overlap with the evaluation prompts in this file; can be repeated.",
        ),
    ] = None,
) -> None:
    """Build prompts from files and Hub datasets: checked, filtered, without duplicates."""
    from stairdata.generators.forecast import forecast_prompts
    from stairdata.generators.prompts.build import build_prompts

    recipe = shared.read_recipe()
    section = recipe.prompts
    both = [*section.decontaminate, *(decontaminate or [])]
    recipe = recipe.model_copy(update={"prompts": section.model_copy(update={"decontaminate": both})})
    shared.run(
        lambda options: forecast_prompts(recipe, options),
        lambda options: build_prompts(recipe, options, servers.execution("prompts") if servers.are_given else None),
    )
