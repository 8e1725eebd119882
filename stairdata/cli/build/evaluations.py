"""`stairdata build evaluations`."""

from __future__ import annotations

from stairdata.cli.build.shared import SharedOptions, takes_shared_options


@takes_shared_options
def build(shared: SharedOptions) -> None:
    """Build judged answers to benchmarks: of models that are asked now, or of responses artifacts."""
    from stairdata.stages import build_evaluations, forecast_evaluations

    recipe = shared.read_recipe()
    shared.run(
        lambda options: forecast_evaluations(recipe, options),
        lambda options: build_evaluations(recipe, options),
    )
