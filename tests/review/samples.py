"""What tests of reviews share: rows of reviews, and a small artifact of pairs out of trees."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from stairdata.generators.pairs.build import build_preference_pairs
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.kinds import polars_schema
from tests.stairdata.forests import Shape, artifact_of, tree_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def review(item_id: str, reviewer: str, verdict: str | None, **columns: Any) -> dict[str, Any]:
    """A row of kind reviews."""
    return {
        "item_kind": "preference_pairs", "item_id": item_id, "reviewer": reviewer, "verdict": verdict,
        "guideline_version": "pairs/1", "submitted_at": NOON, **columns,
    }  # fmt: skip


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a frame of the schema."""
    schema = polars_schema("reviews")
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def block(title: str, body: str) -> str:
    """A reasoning step."""
    return f"<|Reasoning_step|>\nTitle: {title}\n{body}\n<|/Reasoning_step|>"


def answer(body: str) -> str:
    """The last step of an answer."""
    return f"\n\n<|Output|>\nFinal Answer:\n{body}\n<|/Output|>"


def pairs_of(root: Path, number: int, prompts: list[str] | None = None, word: str = "") -> Artifact:
    """Trees, and their pairs: of each prompt one at depth 1 and one at depth 2.

    Args:
        root: where both are built.
        number: of prompts.
        prompts: their texts.
        word: stands in each step.
    """
    rows = []
    for place in range(number):
        shape: Shape = [
            (1, 0, block("Facts:", f"{word} facts {place}"), False, 1.0, 4),
            (2, 0, block("Guess:", f"{word} guess {place}"), False, -1.0, 4),
            (3, 1, answer(f"{word} right {place}"), True, 2.0, 4),
            (4, 1, answer(f"{word} wrong {place}"), True, -1.5 + place / 100, 1),
        ]
        prompt = prompts[place] if prompts else f"Question {place}?"
        prompt_id = identity.prompt_id(prompt)
        keys = {"prompt": prompt, "prompt_id": prompt_id, "tree_id": identity.tree_id(prompt_id, 0)}
        task = "safety" if place % 2 else "helpfulness"
        rows.append(tree_of(shape, place) | keys | {"task": task})
    artifact_of(root, rows)
    return build_preference_pairs(Recipe(), BuildOptions(root=root))
