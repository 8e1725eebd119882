"""The dataset card, generated from manifest and schema."""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any

import jinja2

from stairdata_schemas.kinds import row_schema
from stairdata_schemas.manifest import Manifest

DESCRIPTIONS = {
    "prompts": "Prompts for safety alignment, each with its task and source.",
    "structured_cot": "Step-by-step reasoning in a fixed grammar, one completion a prompt.",
    "trees": "Search trees grown by SI-MCTS: steps, visit counts, values, rollouts and their rewards.",
    "preference_pairs": "Pairs of sibling steps (or trajectories) for step-level DPO, taken from search trees.",
    "prm_pairs": "Pairs of partial solutions for a process reward model, taken from search trees.",
    "responses": "Answers of a model to prompts, with all candidates and their scores.",
    "evaluations": "Answers to benchmark prompts, with what a judge said of them.",
    "reviews": "Verdicts of human reviewers, their names replaced by salted hashes.",
}


def render_card(manifest: Manifest) -> str:
    """Render README.md of an artifact; the YAML at its head makes plain `load_dataset(path)` work."""
    columns = [
        (name, str(column.dtype).split("(")[0].lower(), column.nullable, column.description or "")
        for name, column in row_schema(manifest.kind).columns().items()
    ]
    return (
        _environment()
        .get_template("card.md.jinja")
        .render(
            manifest=manifest,
            columns=columns,
            description=DESCRIPTIONS[manifest.kind],
            pairs=manifest.kind in {"preference_pairs", "prm_pairs"},
        )
    )


def _inline(value: Any) -> Any:
    """Keep a name or a note on its line, and its angle brackets as text."""
    return html.escape(re.sub(r"\s+", " ", value), quote=False) if isinstance(value, str) else value


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("stairdata_schemas"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # markdown, and no text of prompts or models is in it
        finalize=_inline,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
