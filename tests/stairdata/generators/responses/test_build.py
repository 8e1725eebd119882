"""Answers of the actor, and the best of n by a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.generators.responses.build import ScoreFunction, build_responses
from stairdata.llm.budget import BudgetLimits
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BudgetError
from stairdata_schemas.manifest import ModelIdentity

if TYPE_CHECKING:
    from tests.conftest import StubServer

PRM = ModelIdentity(role="prm", name="prm", revision="abc")


@pytest.fixture
def build(
    actor_section: dict[str, Any],
    stub_llm: StubServer,
    waits: list[float],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> Callable[..., Artifact]:
    def answer(
        count: int,
        score: ScoreFunction | None = None,
        *,
        root: str = "answers",
        limits: BudgetLimits | None = None,
        **section: Any,
    ) -> Artifact:
        prompts = make_prompts(count)
        recipe = Recipe.model_validate({"actor": {"retries": 2, **actor_section}, "responses": section})
        options = BuildOptions(root=tmp_path / root, inputs=(str(prompts.folder),), limits=limits or BudgetLimits())
        return build_responses(recipe, options, score, PRM if score else None)

    return answer


def by_length(items: Sequence[tuple[str, str, bool]]) -> list[float]:
    assert all(prompt.startswith("Question") and isinstance(complete, bool) for prompt, _, complete in items)
    return [float(len(text)) for _, text, _ in items]


def test_one_answer_a_prompt(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    artifact = build(5)
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect().to_dicts()
    assert [row["prompt"].split()[1] for row in rows] == [f"{number}:" for number in range(5)]
    for row in rows:
        assert (row["method"], row["model"], row["prm"], row["n"], row["score"]) == ("sample", "actor", None, 1, None)
        assert row["response_id"] == identity.response_id(row["prompt_id"], "actor", "sample", 42)
        assert row["text"] == row["candidates"][0]["text"]
        assert "<|im_end|>" not in row["text"]
        assert row["candidates"][0]["is_complete"]
    body = stub_llm.last()["body"]
    assert body["stop"] == ["<|/Output|>", "<|im_end|>"]
    assert artifact.manifest.usage.requests == stub_llm.stats()["requests"] == 5
    assert artifact.manifest.usage.completion_tokens == sum(row["completion_tokens"] for row in rows) > 0


def test_usage_is_what_the_server_says(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    usage, said = build(5, n=3).manifest.usage, stub_llm.stats()
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (5, *said["usage"])
    assert min(said["usage"]) > 5


def test_usage_of_a_resumed_build_is_that_of_all_its_runs(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    with pytest.raises(BudgetError):
        build(6, concurrency=1, max_tokens=64, limits=BudgetLimits(total_tokens=400))
    first = stub_llm.stats()
    assert 0 < first["requests"] < 6
    usage, said = build(6, concurrency=1, max_tokens=64).manifest.usage, stub_llm.stats()
    assert usage.requests == said["requests"] == 6
    assert (usage.prompt_tokens, usage.completion_tokens) == tuple(said["usage"])
    assert all(0 < before < after for before, after in zip(first["usage"], said["usage"], strict=True))


def test_the_best_of_n_has_the_highest_score(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    artifact = build(6, by_length, method="best_of_n", n=5, prm="folder/prm")
    assert validate_artifact(artifact) == []
    rows = artifact.scan().collect().to_dicts()
    assert stub_llm.stats()["requests"] == 6, "n samples are one request"
    for row in rows:
        lengths = [len(candidate["text"]) for candidate in row["candidates"]]
        assert [candidate["score"] for candidate in row["candidates"]] == lengths
        assert row["chosen_index"] == lengths.index(max(lengths))
        assert (row["score"], len(row["text"])) == (max(lengths), max(lengths))
        assert row["text"] == row["candidates"][row["chosen_index"]]["text"]
        assert (row["prm"], row["n"]) == ("prm", 5)
    assert len({row["chosen_index"] for row in rows}) > 1
    assert [model.role for model in artifact.manifest.models] == ["actor", "prm"]


def test_of_equal_scores_the_first_is_kept(build: Callable[..., Artifact]) -> None:
    artifact = build(2, lambda items: [1.0] * len(items), method="best_of_n", n=3, prm="prm")
    assert artifact.scan().collect()["chosen_index"].to_list() == [0, 0]


def test_negative_scores(build: Callable[..., Artifact]) -> None:
    artifact = build(2, lambda items: [-float(len(text)) for _, text, _ in items], method="best_of_n", n=4, prm="prm")
    for row in artifact.scan().collect().to_dicts():
        assert row["score"] == max(candidate["score"] for candidate in row["candidates"]) < 0


def test_samples_are_scored_and_the_first_stays_chosen(build: Callable[..., Artifact]) -> None:
    for row in build(3, by_length, n=4, prm="prm").scan().collect().to_dicts():
        assert row["chosen_index"] == 0
        assert row["score"] == row["candidates"][0]["score"] == len(row["text"])


def test_every_candidate_is_scored_once(build: Callable[..., Artifact]) -> None:
    seen: list[str] = []

    def score(items: Sequence[tuple[str, str, bool]]) -> list[float]:
        seen.extend(text for _, text, _ in items)
        return [0.0] * len(items)

    build(4, score, method="best_of_n", n=3, prm="prm")
    assert len(seen) == 12


def test_a_cut_answer_is_kept_as_incomplete(build: Callable[..., Artifact]) -> None:
    artifact = build(3, max_tokens=6)
    for row in artifact.scan().collect().to_dicts():
        assert not row["candidates"][0]["is_complete"]
        assert row["text"]


def test_an_answer_of_no_text_is_a_row(build: Callable[..., Artifact], stub_llm: StubServer) -> None:
    stub_llm.control(faults={"empty": 1.0})
    artifact = build(2)
    assert artifact.scan().collect()["text"].to_list() == ["", ""]
    assert validate_artifact(artifact) == []


def test_the_answer_does_not_depend_on_concurrency(build: Callable[..., Artifact]) -> None:
    one = build(8, root="one", concurrency=1, n=2)
    many = build(8, root="many", concurrency=8, n=2)
    assert one.scan().collect().equals(many.scan().collect())


def test_another_prm_is_another_artifact(build: Callable[..., Artifact]) -> None:
    first = build(2, by_length, method="best_of_n", n=2, prm="prm")
    assert build(2, by_length, method="best_of_n", n=2, prm="prm") == first
    assert build(2, n=2) != first
