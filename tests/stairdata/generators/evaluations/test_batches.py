"""Judges, and tested models, in batches: the rows of a live build, and no request twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.generators.evaluations.build import build_evaluations_in_rounds
from stairdata.recipe import Recipe
from stairdata.runs.options import BatchOptions, BuildOptions
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import RecipeError

if TYPE_CHECKING:
    from tests.conftest import StubServer

Evaluate = Callable[..., Artifact | None]


@pytest.fixture
def evaluate(
    actor_section: dict[str, Any], stub_llm: StubServer, waits: list[float], benchmarks: list[Row], tmp_path: Path
) -> Evaluate:
    """Build evaluations of the stub by a rubric of its own, in batches where there is an `action`."""

    def build(
        action: str | None = None,
        *,
        judge: dict[str, Any] | None = None,
        actor: dict[str, Any] | None = None,
        responses: dict[str, Any] | None = None,
        root: str = "evaluated",
        options: dict[str, Any] | None = None,
        **section: Any,
    ) -> Artifact | None:
        asked = {"kind": "rubric", "base_url": stub_llm.base_url, "model": "judge", "retries": 2}
        stub_llm.control(also=["judge", "other"])
        sections = {
            "actor": actor if actor is not None else {"retries": 2, **actor_section},
            "responses": responses or {},
            "evaluations": {"benchmarks": benchmarks, "judge": asked if judge is None else judge, **section},
        }
        settings: dict[str, Any] = {"root": tmp_path / root, "max_quarantine": 1.0} | (options or {})
        asking = BatchOptions(action) if action else None
        return build_evaluations_in_rounds(Recipe.model_validate(sections), BuildOptions(**settings, batch=asking))

    return build


def rows_of(artifact: Artifact | None) -> list[Row]:
    assert artifact is not None
    assert validate_artifact(artifact) == []
    return artifact.scan().collect().to_dicts()


def rounds_of(evaluate: Evaluate, **settings: Any) -> tuple[Artifact, int]:
    """Submit until all is there; says how often."""
    for number in range(1, 12):
        artifact = evaluate("submit", **settings)
        if artifact is not None:
            return artifact, number
    raise AssertionError("it does not end")


def test_a_judge_in_batches_makes_the_rows_of_a_live_build(evaluate: Evaluate, stub_llm: StubServer) -> None:
    """The model answers live while the judge's requests are submitted, and is not asked again, nor needed later."""
    live = evaluate(root="live")
    assert live is not None
    answered = stub_llm.stats()["paths"]["/v1/completions"]
    said: list[str] = []
    settings: dict[str, Any] = {"options": {"tell": said.append}}
    stub_llm.control(batches={"ends": "in_progress"})
    assert evaluate("submit", **settings) is None
    assert "0 rows made, 5 requests in progress, 0 missing" in said[-1]
    assert stub_llm.stats()["paths"]["/v1/completions"] == 2 * answered
    stub_llm.control(batches={})
    artifact, _ = rounds_of(evaluate, **settings)
    assert rows_of(artifact) == rows_of(live)
    assert artifact.manifest.usage == live.manifest.usage
    assert artifact.manifest.fingerprint == live.manifest.fingerprint
    stats = stub_llm.stats()
    assert stats["paths"]["/v1/completions"] == 2 * answered
    assert stats["paths"]["/v1/chat/completions"] == 5, "those of the live build"
    assert set(stats["sent_in_batches"].values()) == {1}


def test_the_tested_model_in_batches_too_goes_in_two_rounds(evaluate: Evaluate, stub_llm: StubServer) -> None:
    """Answers first, then what the judge is asked about them; a chat model as well as the actor."""
    chat = [{"base_url": stub_llm.base_url, "model": "other", "retries": 2}]
    settings: dict[str, Any] = {"models": chat, "responses": {"n": 2}}
    live = evaluate(root="live", **settings)
    before = stub_llm.stats()["requests"]
    artifact, rounds = rounds_of(evaluate, **settings, batch={"answers": True})
    assert rows_of(artifact) == rows_of(live)
    assert 3 <= rounds <= 5
    stats = stub_llm.stats()
    assert sum(stats["paths"].get(path, 0) for path in ("/v1/completions", "/v1/chat/completions")) == before
    assert set(stats["sent_in_batches"].values()) == {1}
    assert stats["requests"] == 2 * before


def test_an_unreadable_judgement_is_asked_again_in_the_next_batch(evaluate: Evaluate, stub_llm: StubServer) -> None:
    evaluate("submit")
    stub_llm.control(judge_text="Well.")
    assert evaluate("collect") is None
    stub_llm.control(judge_text=None)
    said: list[str] = []
    artifact, _ = rounds_of(evaluate, options={"tell": said.append})
    assert len(rows_of(artifact)) == 5
    assert set(stub_llm.stats()["sent_in_batches"].values()) == {1}


def test_who_can_not_be_asked_in_batches(
    evaluate: Evaluate, stub_llm: StubServer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(tokenizer_folder, folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    with pytest.raises(RecipeError, match=r"evaluations.judge asks no model here"):
        evaluate("submit", judge={"kind": "rule"})
    with pytest.raises(RecipeError, match=r"a server with a Batch API; a model folder is served here"):
        evaluate("submit", judge={"kind": "rubric", "path": str(folder)})
    prm = {"base_url": stub_llm.base_url, "model": "prm", "tokenizer": str(tokenizer_folder)}
    with pytest.raises(RecipeError, match=r"answers that no process reward model scores"):
        evaluate("submit", responses={"prm": prm})
