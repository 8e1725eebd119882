"""Answers of the actor in batches: the rows of a live build, and no request twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stairdata.generators.forecast import forecast_responses
from stairdata.generators.responses.build import build_responses_in_rounds
from stairdata.llm.budget import BudgetLimits
from stairdata.recipe import Recipe
from stairdata.runs.options import BatchOptions, BuildOptions
from stairdata_schemas.aliases import Row
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BudgetError, RecipeError, ServerError, UsageError

if TYPE_CHECKING:
    from tests.conftest import StubServer

Build = Callable[..., Artifact | None]


@pytest.fixture
def build(
    actor_section: dict[str, Any],
    stub_llm: StubServer,
    waits: list[float],
    make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> Build:
    """Build from so many prompts, in batches where `batch` is an action; sections and options by name."""

    def answer(
        count: int,
        batch: str | None = None,
        *,
        actor: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        section: dict[str, Any] | None = None,
        root: str = "answers",
        **options: Any,
    ) -> Artifact | None:
        sections = {"actor": {"retries": 2, **actor_section, **(actor or {})}, "responses": section or {}}
        settings = BuildOptions(
            root=tmp_path / root,
            inputs=(str(make_prompts(count).folder),),
            batch=BatchOptions(batch) if batch else None,
            **({"max_quarantine": 1.0} | options),
        )
        return build_responses_in_rounds(Recipe.model_validate(sections | (recipe or {})), settings)

    return answer


def rows_of(artifact: Artifact | None) -> list[Row]:
    assert artifact is not None
    assert validate_artifact(artifact) == []
    return artifact.scan().collect().drop("seconds").to_dicts()


def test_batches_make_the_rows_of_a_live_build(build: Build, stub_llm: StubServer) -> None:
    """Two samples are one request; collecting again, and building live, ask nothing more."""
    section = {"n": 2}
    live = build(7, section=section, root="live")
    asked = stub_llm.stats()["requests"]
    said: list[str] = []
    stub_llm.control(batches={"ends": "in_progress"})
    assert build(7, "submit", section=section | {"batch": {"max_requests": 4}}, tell=said.append) is None
    assert "0 rows made, 7 requests in progress, 0 missing" in said[-1]
    assert build(7, "submit", section=section) is None, "while it is under way nothing is submitted"
    assert build(7, "collect", section=section) is None, "it has not ended"
    with pytest.raises(UsageError, match=r"7 requests of responses@1.0.0 are in progress in batches"):
        build(7, section=section)
    with pytest.raises(UsageError, match=r"--fresh would forget 7 requests"):
        build(7, "submit", section=section, fresh=True)
    stub_llm.control(batches={})
    artifact = build(7, "collect", section=section)
    assert rows_of(artifact) == rows_of(live)
    assert artifact is not None
    assert live is not None
    assert artifact.manifest.fingerprint == live.manifest.fingerprint
    assert artifact.manifest.usage == live.manifest.usage
    stats = stub_llm.stats()
    assert [batch["endpoint"] for batch in stats["batches"]] == ["/v1/completions"] * 2
    assert set(stats["sent_in_batches"].values()) == {1}
    assert stats["requests"] == 2 * asked
    assert build(7, "submit", section=section, tell=said.append) is not None
    assert said[-1] == "responses@1.0.0 is finished"


def test_what_expired_is_submitted_again_or_asked_live(build: Build, stub_llm: StubServer) -> None:
    stub_llm.control(batches={"ends": "expired", "share": 0.5})
    build(8, "submit")
    said: list[str] = []
    assert build(8, "collect", tell=said.append) is None
    assert "4 rows made, 0 requests in progress, 4 missing" in said[-1]
    stub_llm.control(batches={"ends": "expired", "share": 0.25})
    build(8, "submit")
    assert build(8, "collect") is None
    assert len(rows_of(build(8))) == 8
    stats = stub_llm.stats()
    assert set(stats["answered_in_batches"].values()) == {1}
    assert stats["paths"]["/v1/completions"] == 3, "asked live, and only the missing"


@pytest.mark.parametrize("takes_n", ["ignores", "refuses"])
def test_a_server_that_gives_one_sample_is_asked_for_the_others(
    takes_n: str, build: Build, stub_llm: StubServer
) -> None:
    live = build(3, section={"n": 3}, root="live")
    stub_llm.control(takes_n="ignores")
    if takes_n == "refuses":
        said = '{"error": {"message": "n must be 1"}}'
        stub_llm.control(script=[{}] * stub_llm.stats()["requests"] + [{"status": 400, "text": said}] * 3)
    artifact, rounds = None, 0
    while artifact is None:
        artifact = build(3, "submit", section={"n": 3})
        rounds += 1
        assert rounds < 9
    rows = [row | {"requests": 1, "prompt_tokens": 0} for row in rows_of(artifact)]
    assert rows == [row | {"requests": 1, "prompt_tokens": 0} for row in rows_of(live)]
    assert set(stub_llm.stats()["sent_in_batches"].values()) == {1}


def test_requests_that_fail_are_tried_again_and_refused_in_the_end(build: Build, stub_llm: StubServer) -> None:
    stub_llm.control(script=[{"status": 500}] * 2 + [{"status": 400}] + [{}] * 2 + [{"status": 500}] * 4)
    artifact, rounds = None, 0
    while artifact is None:
        artifact = build(5, "submit")
        rounds += 1
        assert rounds < 9
    assert artifact.manifest.outcomes == {"invalid_request": 1, "ok": 2, "server_error": 2}
    assert sorted(stub_llm.stats()["sent_in_batches"].values()) == [1, 1, 1, 3, 3]


def test_a_limit_on_tokens_stops_before_the_request_that_would_break_it(build: Build, stub_llm: StubServer) -> None:
    section = {"max_tokens": 100}
    with pytest.raises(BudgetError, match="requests are submitted, the others are not"):
        build(9, "submit", section=section, limits=BudgetLimits(total_tokens=1200))
    sent = len(stub_llm.stats()["sent_in_batches"])
    assert 0 < sent < 9
    artifact = build(9, "submit", section=section) or build(9, "submit", section=section)
    assert len(rows_of(artifact)) == 9
    assert set(stub_llm.stats()["sent_in_batches"].values()) == {1}


def test_a_forecast_has_the_price_of_batches_and_what_they_have(
    stub_llm: StubServer, build: Build, actor_section: dict[str, Any], make_prompts: Callable[[int], Artifact],
    tmp_path: Path,
) -> None:  # fmt: skip
    prices = {"actor": {"input": 1.0, "output": 10.0, "batch": 0.25}}
    stub_llm.control(batches={"ends": "in_progress"})
    build(4, "submit", recipe={"prices": prices})
    recipe = Recipe.model_validate({"actor": {"retries": 2, **actor_section}, "prices": prices})
    live = BuildOptions(root=tmp_path / "answers", inputs=(str(make_prompts(4).folder),))
    batched = forecast_responses(recipe, replace(live, batch=BatchOptions()))
    (before,), (after,) = forecast_responses(recipe, live).models, batched.models
    assert before.cost is not None
    assert after.cost == pytest.approx(before.cost / 4)
    assert "4 requests are answered or in progress in batches" in batched.words


def test_a_server_with_a_dialect_of_its_own(build: Build, stub_llm: StubServer) -> None:
    """It refuses metadata, loses an answer, and says everything in other words: nothing is sent or lost twice."""
    section = {"batch": {"completion_window": "7d"}}
    stub_llm.control(lose={"POST /v1/batches": ["", "drop"]}, batches={"dialect": True, "ends": "in_progress"})
    build(6, "submit", section=section)
    (batch,) = stub_llm.stats()["batches"]
    assert (batch["completion_window"], batch["metadata"]) == ("7d", None)
    stub_llm.control(batches={"dialect": True}, script=[{"status": 400}])
    artifact = build(6, "collect", section=section)
    assert artifact is not None
    assert artifact.manifest.outcomes == {"invalid_request": 1, "ok": 5}
    assert set(stub_llm.stats()["sent_in_batches"].values()) == {1}


def test_a_batch_that_may_have_been_made_is_not_made_again_without_a_list(build: Build, stub_llm: StubServer) -> None:
    stub_llm.control(lose={"POST /v1/batches": ["drop"], "GET /v1/batches": ["gone"] * 9})
    for _ in range(2):
        with pytest.raises(ServerError, match=r"its answer was lost, and it has no list of batches; look for it"):
            build(3, "submit")
    assert len(stub_llm.stats()["batches"]) == 1
    assert build(3, "cancel") is None
    assert build(3, "submit") is None
    assert len(stub_llm.stats()["batches"]) == 2, "once the user has let go of it"


def test_what_a_failed_batch_has_answered_counts(build: Build, stub_llm: StubServer) -> None:
    stub_llm.control(batches={"ends": "broken", "share": 0.5})
    build(4, "submit")
    said: list[str] = []
    assert build(4, "collect", tell=said.append) is None
    assert "2 rows made, 0 requests in progress, 2 missing" in said[-1]
    stub_llm.control(batches={})
    assert len(rows_of(build(4, "submit") or build(4, "collect"))) == 4
    assert set(stub_llm.stats()["answered_in_batches"].values()) == {1}


def test_what_can_not_be_asked_in_batches(build: Build, stub_llm: StubServer) -> None:
    with pytest.raises(RecipeError, match="--batch needs the base_url of 'sft'"):
        build(1, "submit", actor={"base_url": None, "model": None, "path": "runs/sft"})
    scored = {"prm": {"base_url": stub_llm.base_url, "model": "prm", "tokenizer": "t"}, "method": "best_of_n"}
    with pytest.raises(RecipeError, match=r"takes answers that nobody scores.*best_of_n with a prm"):
        build(1, "submit", section=scored)
    with pytest.raises(UsageError, match="no batch was submitted for this build"):
        build(1, "collect")
    with pytest.raises(UsageError, match="known are submit, status, collect, cancel"):
        build(1, "sumbit")
    stub_llm.control(lose={"POST /v1/files": ["refuse"] * 9})
    with pytest.raises(ServerError, match="leave --batch out if the server has no Batch API"):
        build(1, "submit")
    assert len(rows_of(build(1))) == 1, "what was never sent stands in nobody's way"
