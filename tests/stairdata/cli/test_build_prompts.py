"""`stairdata build prompts`: what the options say, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_decontaminate_adds_to_the_recipe(run: Run, tmp_path: Path) -> None:
    rows = ["one two three", "four five six", "seven eight nine"]
    for name, kept in (("q", rows), ("a", rows[:1]), ("b", rows[1:2])):
        lines = (json.dumps({"prompt": row, "task": "safety"}) + "\n" for row in kept)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"prompts: {{sources: [{{path: {tmp_path}/q.jsonl}}], decontaminate: [{tmp_path}/a.jsonl]}}\n")
    ended = run("build", "prompts", "--recipe", str(recipe), "--decontaminate", f"{tmp_path}/b.jsonl")
    assert ended.status == 0, ended.err
    assert "1 rows in" in ended.err
    assert "2 refused (contaminated 2)" in ended.err
    assert run("build", "trees", "--decontaminate", "x.csv").status == 2


def test_a_recipe_that_comes_along_and_one_that_does_not(run: Run) -> None:
    assert run("build", "prompts", "--recipe", "stair-50k", "--dry-run").out == "prompts: asks no model\n"
    ended = run("build", "prompts", "--recipe", "stair-5k")
    assert (ended.status, "stair-20k, stair-50k" in ended.err) == (1, True)
    assert "decontaminate.0" in run("build", "prompts", "--set", "prompts.decontaminate=[[]]").err


def test_an_unknown_key_of_a_source_names_the_nearest(run: Run) -> None:
    ended = run("build", "prompts", "--set", "prompts.sources=[{path: x.jsonl, wher: {a: b}}]")
    assert "did you mean 'where'?" in ended.err
