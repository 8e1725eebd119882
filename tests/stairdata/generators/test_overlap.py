"""Sampling, judging and scoring overlap: the stub gives the last prompt no answer until the other roles were asked.

A build that judged or scored once all is sampled, or that worked on one prompt after the other, would wait for ever
(here: for `timeout`), and has no answer to that prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.runs.options import BuildOptions
from stairdata.stages import build_kind, parse_full_recipe
from stairdata_schemas.artifacts import Artifact

if TYPE_CHECKING:
    from tests.conftest import StubServer

PROMPTS = 3
LAST = f"number {PROMPTS - 1}"
JUDGE, PRM = "/v1/chat/completions", "/classify"
BEAM = {"method": "beam", "width": 2, "expansions": 2, "max_depth": 2}


@pytest.mark.parametrize(
    ("kind", "responses", "met"),
    [
        ("trees", {}, [JUDGE]),
        ("responses", {"method": "best_of_n", "n": 2}, [PRM]),
        ("responses", BEAM, [PRM]),
        ("evaluations", {}, [JUDGE]),
        ("evaluations", {"method": "best_of_n", "n": 2}, [PRM, JUDGE]),
    ],
)
def test_other_roles_work_while_prompts_are_sampled(
    kind: str,
    responses: dict[str, Any],
    met: list[str],
    *,
    actor_section: dict[str, Any],
    stub_llm: StubServer,
    prompts_of: Callable[[list[str]], Artifact],
    tmp_path: Path,
) -> None:
    texts = [f"How do I do number {number}?" for number in range(PROMPTS)]
    prompts = prompts_of(texts)
    file = tmp_path / "asked.csv"
    file.write_text("prompt,task\n" + "".join(f"{text},safety\n" for text in texts))
    benchmark = {"name": "own", "path": str(file), "columns": {"prompt": "prompt", "task": "task"}, "score": "refusal"}
    at_stub = {"base_url": stub_llm.base_url, "model": "actor", "timeout": 20, "retries": 0}
    actor = actor_section | at_stub
    recipe = parse_full_recipe(
        {
            "actor": actor,
            "responses": responses | ({"prm": actor} if responses else {}),
            "trees": {"iterations": 2, "judge": {"kind": "endpoint", "endpoint": at_stub}},
            "evaluations": {"benchmarks": [benchmark], "judge": {"kind": "rubric"} | at_stub},
        }
    )
    inputs = () if kind == "evaluations" else (str(prompts.folder),)
    stub_llm.control(late=LAST, meanwhile=met)
    artifact = build_kind(kind, recipe, BuildOptions(root=tmp_path / "built", inputs=inputs, max_quarantine=0.0))
    assert artifact is not None
    assert artifact.manifest.rows == PROMPTS
    assert stub_llm.stats()["met"] == sorted(met)
