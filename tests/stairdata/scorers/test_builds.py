"""Builds of responses with a real reward model, in this process and behind a server: the same answers are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.runs.options import BuildOptions
from stairdata.stages import build_responses, parse_full_recipe
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import ModelError, ServerError
from tests.test_benchmarks import figure
from tests.test_benchmarks import run as run_benchmark

if TYPE_CHECKING:
    from tests.conftest import StubServer


@pytest.fixture
def build(
    actor_section: dict[str, Any],
    stub_llm: StubServer,
    waits: list[float],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> Callable[..., Artifact]:
    def make(prm: Any, name: str, **section: Any) -> Artifact:
        recipe = parse_full_recipe({"actor": actor_section | {"retries": 1}, "responses": {"prm": prm, **section}})
        options = BuildOptions(root=tmp_path / name, inputs=(str(make_prompts(5).folder),))
        artifact = build_responses(recipe, options)
        assert artifact is not None
        return artifact

    return make


@pytest.mark.slow
def test_both_forms_choose_the_same_answers(
    build: Callable[..., Artifact], actor_section: dict[str, Any], stub_llm: StubServer, prm_folder: Path
) -> None:
    stub_llm.control(prm=str(prm_folder))
    settings = {"method": "best_of_n", "n": 3, "max_tokens": 120}
    here = build(str(prm_folder), "here", **settings)
    served = build(actor_section | {"retries": 1}, "served", **settings)
    for artifact in (here, served):
        assert validate_artifact(artifact) == []
        assert artifact.manifest.models[1].dtype == "float32"
    ours, theirs = (artifact.scan().collect().to_dicts() for artifact in (here, served))
    for one, other in zip(ours, theirs, strict=True):
        assert one["chosen_index"] == other["chosen_index"]
        assert [each["text"] for each in one["candidates"]] == [each["text"] for each in other["candidates"]]
        for scores, others in zip(one["step_scores"], other["step_scores"], strict=True):
            assert scores == pytest.approx(others, abs=1e-4)
        assert one["prm_calls"] <= 3 <= other["prm_calls"], "a pass an answer, and a sequence a step"
    assert {row["prm"] for row in theirs} == {"actor"}


def test_a_prm_server_that_dies_half_way_loses_nothing(
    build: Callable[..., Artifact], actor_section: dict[str, Any], stub_llm: StubServer, stub_process: StubServer
) -> None:
    settings = {"method": "best_of_n", "n": 2, "concurrency": 1}
    whole = build(actor_section, "whole", **settings).scan().collect().drop("seconds")
    stub_llm.reset()
    stub_llm.control(die_after=6)  # the check, and five requests to actor and reward model in turn
    with pytest.raises(ServerError, match="finished work is kept"):
        build(actor_section | {"retries": 1}, "again", **settings)
    stub_llm.wait()
    stub_process.start()
    stub_process.reset()
    section = actor_section | {"base_url": stub_process.base_url}
    actor_section["base_url"] = stub_process.base_url
    again = build(section | {"retries": 1}, "again", **settings).scan().collect().drop("seconds")
    assert again.equals(whole)
    assert stub_process.stats()["paths"]["/v1/completions"] < 5


def test_a_build_that_runs_out_of_memory_loses_nothing(
    build: Callable[..., Artifact], stub_llm: StubServer, prm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third pass fails; the build that is run again asks for what it lacks."""
    import torch

    from stairdata_training.inference.forward import rewards_at

    settings = {"method": "best_of_n", "n": 2, "max_tokens": 120, "concurrency": 1}
    whole = build(str(prm_folder), "whole", **settings).scan().collect().drop("seconds")
    asked = stub_llm.stats()["requests"]
    stub_llm.reset()
    passes: list[Any] = []

    def failing(network: Any) -> Any:
        score = rewards_at(network)

        def scores(*batch: Any) -> Any:
            passes.append(batch)
            if len(passes) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return score(*batch)

        return scores

    monkeypatch.setattr("stairdata_training.scoring.rewards_at", failing)
    with pytest.raises(ModelError, match=r"too little memory for the reward model .*finished work is kept"):
        build(str(prm_folder), "again", **settings)
    assert build(str(prm_folder), "again", **settings).scan().collect().drop("seconds").equals(whole)
    assert stub_llm.stats()["requests"] == asked, "nothing was asked for twice"


def test_a_language_model_is_refused_before_anything_is_sampled(
    build: Callable[..., Artifact], stub_llm: StubServer, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").touch()
    for prm in (str(tmp_path), {"path": str(tmp_path), "serve": True}):
        with pytest.raises(ModelError, match="is not a reward model: its architecture is 'LlamaForCausalLM'"):
            build(prm, "none", method="best_of_n", n=2)
    assert stub_llm.stats()["requests"] == 0


@pytest.mark.slow
def test_the_benchmark_of_both_scorers_compares_scores_and_choices(
    build: Callable[..., Artifact], stub_llm: StubServer, prm_folder: Path, tmp_path: Path
) -> None:
    """By the same weights they agree; by those of another model, as the stub draws them, they choose others."""
    folder = build(None, "sampled", method="sample", n=4, max_tokens=120).folder
    at = ["--base-url", stub_llm.base_url, "--name", "actor"]
    arguments = ["--prm", str(prm_folder), "--responses", str(folder), *at]
    stub_llm.control(prm=str(prm_folder), tokenizer=str(prm_folder))
    output = run_benchmark("scorers.py", *arguments, folder=tmp_path)
    assert "5 rows, 20 candidates" in output
    assert 0 < figure(output, "greatest difference:") < 1e-4
    assert figure(output, "rows whose choice differs:") == 0
    stub_llm.control(prm=None)
    output = run_benchmark("scorers.py", *arguments, folder=tmp_path)
    assert figure(output, "greatest difference:") > 0.1
    assert figure(output, "rows whose choice differs:") > 0
