"""The recipe of `stairdata quickstart`, and the model that it starts from.

The model is SmolLM2-135M-Instruct. It is far too small to be made safe by this; what the run shows is that every
stage works, and what each leaves behind.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from stairdata.pipeline.question import ask_or_find
from stairdata.pipeline.run import BASE, Pipeline
from stairdata.pipeline.steps import RunOptions
from stairdata.stages import parse_full_recipe
from stairdata_schemas.errors import ModelError
from stairdata_schemas.rendering import check_model_folder

if TYPE_CHECKING:
    from stairdata.runs.progress import Progress
    from stairdata.stages import FullRecipe

PACKAGE = Path(__file__).parent.parent
DATA = PACKAGE / "data"
RECIPE = PACKAGE / "recipes" / "quickstart.yaml"
LICENSE = "apache-2.0"  # of the bundled rows
MOST_REFUSED = 0.5  # small models break off many answers


class Sizes(NamedTuple):
    """How large the stages are."""

    cot_rows: int | None
    tree_prompts: int
    iterations: int
    pairs: int
    eval_prompts: int
    candidates: int
    sft_epochs: float
    sft_learning_rate: float


KEYS = {
    "cot_rows": ("rounds.sft_rows",),
    "tree_prompts": ("rounds.prompts_per_round",),
    "iterations": ("trees.iterations",),
    "pairs": ("dpo.max_rows", "prm.max_rows"),
    "eval_prompts": ("rounds.held_out",),
    "candidates": ("rounds.best_of",),
    "sft_epochs": ("sft.epochs",),
    "sft_learning_rate": ("sft.learning_rate",),
}
"""The keys of the recipe that a size is written to."""
SMALL = Sizes(
    cot_rows=None,
    tree_prompts=16,
    iterations=10,
    pairs=48,
    eval_prompts=24,
    candidates=4,
    sft_epochs=2,
    sft_learning_rate=4e-4,
)
SMOKE = Sizes(
    cot_rows=96,
    tree_prompts=4,
    iterations=6,
    pairs=12,
    eval_prompts=4,
    candidates=2,
    sft_epochs=2,
    sft_learning_rate=5e-4,
)


def quickstart_recipe(folder: Path, sizes: Sizes, teacher: Mapping[str, str] | None) -> FullRecipe:
    """Return the packaged recipe with sizes, bundled data and the start model put in.

    Args:
        folder: of the run.
        sizes: of the stages.
        teacher: the endpoint of the teacher that is asked in place of the rows written by hand.
    """
    sections: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for name, size in sizes._asdict().items():
        for key in KEYS[name]:
            section, _, last = key.partition(".")
            sections[section][last] = size
    sections["sft"]["model"] = str(folder / "models" / BASE)
    sections["prompts"] = {"sources": [{"path": str(DATA / "prompts.jsonl"), "license": LICENSE}]}
    rows = DATA / "structured_cot.jsonl"
    if teacher is None:
        sections["structured_cot"] = {"path": str(rows), "license": LICENSE}
    else:
        sections["structured_cot"] = {"teacher": dict(teacher)}
        sections["rounds"]["sft_prompts"] = [{"path": str(rows), "name": "stairdata-bundled", "license": LICENSE}]
    return parse_full_recipe(sections)


def quickstart_pipeline(folder: Path, sizes: Sizes, teacher: Mapping[str, str] | None, progress: Progress) -> Pipeline:
    """Return the run of the quickstart; its start model has to be there by the time that it runs."""
    options = RunOptions(folder, progress, max_quarantine=MOST_REFUSED)
    return Pipeline(quickstart_recipe(folder, sizes, teacher), options)


def run_quickstart(pipeline: Pipeline, sizes: Sizes) -> dict[str, Any]:
    """Fetch the model unless it is there, run all stages, ask a question, and return what summary.json says."""
    options = pipeline.options
    pipeline.steps.records.append(_fetch_base(options.folder / "models" / BASE, options.progress))
    pipeline.extra = {"sizes": sizes._asdict()}

    def ask(recipe: FullRecipe) -> None:
        pipeline.extra["question"] = ask_or_find(recipe, options)

    pipeline.at_end = ask
    return pipeline.run()


def _fetch_base(output: Path, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    try:
        check_model_folder(output)
    except ModelError:
        progress("fetch SmolLM2-135M-Instruct", 0, 0)
        from stairdata_training.smollm2 import prepare_smollm2

        prepare_smollm2(output)
    return {"stage": BASE, "model": str(output), "seconds": round(time.monotonic() - started, 1)}
