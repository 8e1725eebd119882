"""The recipe of the main line, and how others differ from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stairdata.pipeline.quickstart import KEYS, SMOKE
from stairdata.recipe.loading import PACKAGED
from stairdata.stages import FullRecipe, read_full_recipe
from stairdata_schemas.aliases import Json
from stairdata_schemas.files import write_atomic

from .place import MainSettings, ProofPlace
from .sources import put_sources_in, write_smoke_benchmarks

RECIPE = PACKAGED / "proof.yaml"
LARGER = Path(__file__).with_name("larger.yaml")
SMOKE_ROUNDS = {"count": 2, "eval_prompts": 4, "searched_prompts": 4}


def recipe_of(place: ProofPlace, settings: MainSettings, changes: Mapping[str, Any] | None = None) -> FullRecipe:
    """Return the main line's recipe with keys set: those of the command, then the changes.

    Raises:
        InputError: a file of the data that is missing, or lacks a column.
        RecipeError: an unknown key, or a wrong value.
    """
    sections = _sections(place, settings)
    place.root.mkdir(parents=True, exist_ok=True)
    file = place.root / "recipe.yaml"
    write_atomic(file, yaml.safe_dump(sections, sort_keys=False))
    changed = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
    return read_full_recipe(file, [*settings.overrides, *changed])


def larger_overrides(model: str | None = None) -> list[str]:
    """Return the keys that make the proof one of a larger model on one GPU.

    Args:
        model: a folder or Hub id in place of the one named in larger.yaml.
    """
    keys: Json = yaml.safe_load(LARGER.read_text(encoding="utf-8"))
    return [f"{key}={json.dumps(value)}" for key, value in (keys | ({"sft.model": model} if model else {})).items()]


def _sections(place: ProofPlace, settings: MainSettings) -> Json:
    sections: Json = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    sections["sft"]["model"] = str(place.start_model.absolute())
    if not settings.smoke:
        return put_sources_in(sections, None if settings.data is None else Path(settings.data))
    sections["evaluations"]["benchmarks"] = []
    sections["prompts"] |= {"sources": sections["prompts"]["sources"][:1], "decontaminate": []}
    sections = put_sources_in(sections, None)
    sections["evaluations"]["benchmarks"] = write_smoke_benchmarks(place.data.absolute())
    for name, size in SMOKE._asdict().items():
        for key in KEYS[name]:
            section, _, last = key.partition(".")
            sections[section][last] = size
    sections["rounds"] |= SMOKE_ROUNDS | {"best_of": 1}
    sections["preference_pairs"]["balance"] = False  # so few trees may have no pair of one of the tasks
    return sections
