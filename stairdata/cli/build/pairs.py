"""`stairdata build preference-pairs` and `prm-pairs`."""

from __future__ import annotations

from typing import Annotated

import typer

from stairdata.cli.build.shared import SharedOptions, takes_shared_options


@takes_shared_options
def build_preference_pairs(
    shared: SharedOptions,
    reviews: Annotated[
        str | None, typer.Option("--reviews", metavar="REF", help="Reviews that decide which pairs are kept.")
    ] = None,
) -> None:
    """Build pairs for DPO out of trees: siblings far enough apart in value, or whole answers."""
    from stairdata.generators.pairs import build
    from stairdata.runs.forecast import Forecast

    recipe = shared.read_recipe()
    shared.run(
        lambda _: Forecast("preference_pairs"),
        lambda options: build.build_preference_pairs(recipe, options, reviews),
    )


@takes_shared_options
def build_prm_pairs(shared: SharedOptions) -> None:
    """Build pairs for the process reward model out of trees: nodes of equal depth, and whole answers."""
    from stairdata.generators.pairs import build
    from stairdata.runs.forecast import Forecast

    recipe = shared.read_recipe()
    shared.run(lambda _: Forecast("prm_pairs"), lambda options: build.build_prm_pairs(recipe, options))
