"""Runs of the pipeline for a proof: forecast first, then run, or find what is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stairdata.cli.console import emit, say, show_progress
from stairdata.llm.budget import BudgetLimits
from stairdata.pipeline.dry_run import finished_stages
from stairdata.pipeline.quickstart import MOST_REFUSED
from stairdata.pipeline.run import Pipeline, locked
from stairdata.pipeline.steps import RunOptions
from stairdata.runs.progress import Progress, quiet
from stairdata.stages import FullRecipe
from stairdata_schemas.aliases import Json
from stairdata_schemas.files import write_atomic

from .forecast import Rates, forecast_lines, forecast_stages
from .items import Item
from .place import MainSettings, ProofPlace
from .recipes import recipe_of


def run_options(folder: Path, progress: Progress = quiet, minutes: float | None = None) -> RunOptions:
    """Return the options of a run; small models break off many answers, so that many rows may be refused.

    Args:
        folder: of the run.
        progress: told how far it is.
        minutes: after which it stops, to go on later.
    """
    limits = BudgetLimits(seconds=None if minutes is None else 60 * minutes)
    return RunOptions(
        folder, progress, tell=lambda words: say(words) if words else None, limits=limits, max_quarantine=MOST_REFUSED
    )


def show_forecast(recipe: FullRecipe, options: RunOptions, rates: Rates) -> None:
    """Print what is finished of a run, and how long the rest will take."""
    finished = finished_stages(recipe, options)
    for line in forecast_lines(forecast_stages(recipe, rates, options.until), len(finished), rates):
        emit(line)


def run_line(recipe: FullRecipe, folder: Path, minutes: float | None = None) -> dict[str, Any]:
    """Run all stages, or find those that are finished, and return what summary.json says."""
    with show_progress() as progress:
        pipeline = Pipeline(recipe, run_options(folder, progress, minutes))
        with locked(folder):
            summary = pipeline.run()
    _write_record(folder, recipe, summary["stages"])
    return summary


# -- items -----------------------------------------------------------------------------------------------------------


def item_recipe(place: ProofPlace, settings: MainSettings, item: Item) -> FullRecipe:
    """Return the recipe of an item."""
    return recipe_of(place, settings, item.resolved(recipe_of(place, settings), place))


def item_options(place: ProofPlace, item: Item, progress: Progress = quiet, minutes: float | None = None) -> RunOptions:
    """Return the options of an item, whose figures are kept apart from those of the main line."""
    if item.has_own_folder:
        return run_options(place.record(item), progress, minutes)
    return replace(run_options(place.main, progress, minutes), until=item.until, results=place.record(item))


def run_item(place: ProofPlace, settings: MainSettings, item: Item, rates: Rates, minutes: float | None = None) -> None:
    """Forecast an item, and run what is not finished of it."""
    recipe, record = item_recipe(place, settings, item), place.record(item)
    record.mkdir(parents=True, exist_ok=True)
    show_forecast(recipe, item_options(place, item), rates)
    if item.has_own_folder:
        run_line(recipe, record, minutes)
        return
    with show_progress() as progress:
        pipeline = Pipeline(recipe, item_options(place, item, progress, minutes))
        with locked(place.main):
            pipeline.make()
    _write_record(record, recipe, pipeline.steps.records)


# -- records ---------------------------------------------------------------------------------------------------------


def _write_record(folder: Path, recipe: FullRecipe, stages: Sequence[Json]) -> None:
    """Note that a recipe is finished: models need not be hashed again to know it."""
    text = json.dumps({"recipe": _portable(recipe.model_dump(mode="json")), "stages": stages}, indent=1)
    write_atomic(folder / "stages.json", text + "\n")


def finished_record(folder: Path, recipe: FullRecipe) -> Sequence[Json] | None:
    """Return the stages of a finished run; None where it has not run, or not by this recipe."""
    file = folder / "stages.json"
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    stages: Sequence[Json] = record["stages"]
    return stages if _is_recorded(recipe, record["recipe"]) else None


def _is_recorded(recipe: FullRecipe, recorded: Json) -> bool:
    """Return whether a record is of this recipe; it may lack keys that are newer, where they have their defaults."""
    dumps = [recipe.model_dump(mode="json", exclude_defaults=each) for each in (False, True)]
    return _agrees(recorded, *map(_portable, dumps))


def _agrees(recorded: Any, present: Any, chosen: Any) -> bool:
    """Compare two dumps of recipes; `chosen` is the present one without defaults."""
    if isinstance(recorded, dict) and isinstance(present, dict):
        chosen = chosen if isinstance(chosen, dict) else {}
        newer = present.keys() - recorded.keys()
        return (
            recorded.keys() <= present.keys()
            and not newer & chosen.keys()
            and all(_agrees(value, present[name], chosen.get(name)) for name, value in recorded.items())
        )
    if isinstance(recorded, list) and isinstance(present, list):
        parts = chosen if isinstance(chosen, list) else [None] * len(present)
        return len(recorded) == len(present) and all(map(_agrees, recorded, present, parts))
    return bool(recorded == present)


def _portable(value: Any) -> Any:
    """Take absolute paths for the names of their files: a folder that was moved has run all the same."""
    if isinstance(value, dict):
        return {name: _portable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_portable(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
