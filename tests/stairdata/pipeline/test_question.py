"""The question at the end of the quickstart: asked over HTTP of a search, on a server that runs already, and once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stairdata.llm import vllm_server
from stairdata.llm.vllm_server import ServerOptions
from stairdata.pipeline.question import QUESTION, ask_or_find
from stairdata.pipeline.run import Pipeline
from stairdata.pipeline.steps import RunOptions
from stairdata.stages import FullRecipe, parse_full_recipe
from tests.stairdata.pipeline.conftest import FinishedRun
from tests.stairdata.pipeline.on_stub import stub_command

pytestmark = pytest.mark.slow


def test_a_question_is_asked_once(finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    started: list[str] = []

    def start(options: ServerOptions, port: int) -> list[str]:
        started.append(Path(options.model).name)
        return stub_command(options, port)

    def run(**best: Any) -> dict[str, Any]:
        sections = finished.sections | {"rounds": finished.sections["rounds"] | best}
        pipeline = Pipeline(parse_full_recipe(sections), RunOptions(folder))

        def ask(recipe: FullRecipe) -> None:
            pipeline.extra["question"] = ask_or_find(recipe, pipeline.options)

        pipeline.at_end = ask
        return pipeline.run()

    monkeypatch.setattr(vllm_server, "vllm_command", start)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    asked = run()["question"]
    assert (asked["question"], started) == (QUESTION, ["dpo-2"])
    assert asked["answer"]
    assert asked["usage"]["completion_tokens"] > 0
    assert json.loads((folder / "summary.json").read_text())["question"] == asked
    assert run()["question"] == asked
    assert started == ["dpo-2"], "the answer is kept"
    other = run(best_of=3)
    assert started == ["dpo-2"] * 2, "one server for the answers to held-out prompts and for the question"
    assert other["question"]["searched_by"]["n"] == 3
