"""Runs of the pipeline for a proof: forecast first, then run, or find what is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stairdata.cli.console import emit, say, show_progress
from stairdata.pipeline.dry_run import finished_stages
from stairdata.pipeline.quickstart import MOST_REFUSED
from stairdata.pipeline.run import Pipeline, locked
from stairdata.pipeline.steps import RunOptions
from stairdata.runs.progress import Progress, quiet
from stairdata.stages import FullRecipe

from .forecast import Rates, forecast_lines, forecast_stages


def run_options(folder: Path, progress: Progress = quiet) -> RunOptions:
    """Return the options of a run; small models break off many answers, so that many rows may be refused."""
    return RunOptions(folder, progress, tell=lambda words: say(words) if words else None, max_quarantine=MOST_REFUSED)


def show_forecast(recipe: FullRecipe, folder: Path, rates: Rates) -> None:
    """Print what is finished of a run, and how long the rest will take."""
    finished = finished_stages(recipe, run_options(folder))
    for line in forecast_lines(forecast_stages(recipe, rates), len(finished), rates):
        emit(line)


def run_line(recipe: FullRecipe, folder: Path) -> dict[str, Any]:
    """Run all stages, or find those that are finished, and return what summary.json says."""
    with show_progress() as progress:
        pipeline = Pipeline(recipe, run_options(folder, progress))
        with locked(folder):
            return pipeline.run()
