"""Structured reasoning, by hand and by a teacher: what parses becomes a row, all else is refused with its rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata.generators.structured_cot.answer import WrittenAnswer
from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata_schemas import grammar, identity
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BuildError, InputError, QuarantineError

if TYPE_CHECKING:
    from tests.conftest import StubServer

STEPS = [{"title": "Problem: what is asked:", "body": "Water,\n\nand 👩🏽‍🚀."}, {"title": "Plan:", "body": "Heat it."}]
GOOD = {"prompt": "Boil?", "task": "helpfulness", "steps": STEPS, "output": "Use a pot."}


def built(recipe: Recipe, options: BuildOptions) -> Artifact:
    artifact = build_structured_cot(recipe, options)
    assert artifact is not None
    return artifact


def by_hand(folder: Path, rows: list[Any], **options: Any) -> Artifact:
    path = folder / "cot.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.model_validate({"structured_cot": {"path": str(path)}})
    return built(recipe, BuildOptions(root=folder / "artifacts", **options))


def refused_of(folder: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(folder / "quarantine" / "*.parquet").to_dicts()


def test_rows_by_hand(tmp_path: Path) -> None:
    artifact = by_hand(tmp_path, [GOOD])
    (row,) = artifact.scan().collect().to_dicts()
    assert (row["steps"], row["output"], row["teacher"]) == (STEPS, "Use a pot.", "hand-written")
    assert row["prompt_id"] == identity.prompt_id("Boil?")
    parsed = grammar.parse(row["completion"])
    assert [step.title for step in parsed.steps] == [step["title"] for step in STEPS]
    assert parsed.output == row["output"]
    assert validate_artifact(artifact) == []
    assert artifact.manifest.models == []


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("prompt_missing", {"prompt": None}),
        ("prompt_missing", {"prompt": "  "}),
        ("prompt_missing", {"prompt": 5}),
        ("unknown_task", {"task": "helpful"}),
        ("unknown_task", {"task": ["safety"]}),
        ("not_the_schema", {"steps": "Plan"}),
        ("not_the_schema", {"steps": None}),
        ("not_the_schema", {"output": None}),
        ("not_the_schema", {"output": float("nan")}),
        ("not_the_schema", {"steps": [{"title": "Plan:"}]}),
        ("not_the_schema", {"steps": [{"title": "Plan:", "body": "b", "note": "n"}]}),
        ("grammar_no_reasoning", {"steps": []}),
        ("grammar_empty_output", {"output": " "}),
        ("grammar_empty_title", {"steps": [{"title": "", "body": "b"}]}),
        ("grammar_empty_body", {"steps": [{"title": "Plan:", "body": "\n"}]}),
        ("grammar_nested_tag", {"output": "no <|Output|> here"}),
        ("grammar_missing_title", {"steps": [{"title": "two\nlines", "body": "b"}]}),
        ("duplicate_prompt", {"prompt": "First?"}),
        ("not_unicode", {"prompt": "half \ud83d"}),
        ("not_the_schema", {"output": "half \ud83d"}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_row_by_hand_that_is_refused(rule: str, change: dict[str, Any], tmp_path: Path) -> None:
    artifact = by_hand(tmp_path, [GOOD | {"prompt": "First?"}, GOOD | change], max_quarantine=0.5)
    assert artifact.manifest.rows == 1
    (refused,) = refused_of(artifact.folder)
    assert (refused["source"], refused["row"], refused["rule"]) == ("cot.jsonl", 2, rule)


def test_a_broken_line_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cot.jsonl"
    path.write_text(json.dumps(GOOD) + "\n[1]\n{\n")
    recipe = Recipe.model_validate({"structured_cot": {"path": str(path)}})
    artifact = built(recipe, BuildOptions(root=tmp_path, max_quarantine=1.0))
    assert artifact.manifest.quarantine == {"not_an_object": 1, "not_json": 1}


@pytest.mark.parametrize(
    "body", [b"bytes", datetime(2026, 1, 1), Decimal("1.5")], ids=lambda value: type(value).__name__
)
def test_a_parquet_file_by_hand_with_other_things_than_text(body: object, tmp_path: Path) -> None:
    path = tmp_path / "cot.parquet"
    step = {"title": "Plan:", "body": body}
    pl.DataFrame([{"prompt": "Boil?", "task": "safety", "steps": [step], "output": "Yes."}]).write_parquet(path)
    recipe = Recipe.model_validate({"structured_cot": {"path": str(path)}})
    with pytest.raises(BuildError, match="not_the_schema"):
        built(recipe, BuildOptions(root=tmp_path))


def test_a_row_of_csv_by_hand_that_lacks_a_field_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cot.csv"
    path.write_text("prompt,task,steps,output\n\nBoil?,safety\n")
    recipe = Recipe.model_validate({"structured_cot": {"path": str(path)}})
    with pytest.raises(BuildError, match="wrong_number_of_fields: line 3 has 2 fields, the head has 4"):
        built(recipe, BuildOptions(root=tmp_path))


def test_a_file_by_hand_that_is_not_there(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"structured_cot": {"path": str(tmp_path / "no.jsonl")}})
    with pytest.raises(InputError, match=r"no\.jsonl does not exist or is not a file"):
        build_structured_cot(recipe, BuildOptions(root=tmp_path))


@pytest.fixture
def ask(
    stub_llm: StubServer, waits: list[float], make_prompts: Callable[[int], Artifact], tmp_path: Path
) -> Callable[..., Artifact]:
    """Build from the stub as teacher."""

    def build(count: int, *, max_quarantine: float = 1.0, limit: int | None = None, **teacher: Any) -> Artifact:
        prompts = make_prompts(count)
        teacher = {"base_url": stub_llm.base_url, "model": "actor", "retries": 2, **teacher}
        recipe = Recipe.model_validate({"structured_cot": {"teacher": teacher, "concurrency": 4}})
        options = BuildOptions(
            root=tmp_path / "artifacts", inputs=(str(prompts.folder),), max_quarantine=max_quarantine, limit=limit
        )
        return built(recipe, options)

    return build


def test_a_teacher(ask: Callable[..., Artifact], stub_llm: StubServer) -> None:
    artifact = ask(10)
    rows = artifact.scan().collect().to_dicts()
    assert len(rows) == 10
    assert validate_artifact(artifact) == []
    assert {(row["teacher"], row["finish"]) for row in rows} == {("actor", "stop")}
    assert {row["task"] for row in rows} == {"safety", "helpfulness"}
    assert artifact.manifest.usage.requests == stub_llm.stats()["requests"] == 10
    assert artifact.manifest.usage.completion_tokens == sum(row["completion_tokens"] for row in rows)
    assert artifact.manifest.outcomes == {"ok": 10}
    assert [(model.role, model.name) for model in artifact.manifest.models] == [("teacher", "actor")]


def test_what_a_teacher_is_asked(ask: Callable[..., Artifact], stub_llm: StubServer) -> None:
    ask(1, max_tokens=777, temperature=0.3)
    body = stub_llm.last()["body"]
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["response_format"]["json_schema"]["schema"] == WrittenAnswer.model_json_schema()
    assert (body["max_completion_tokens"], body["temperature"]) == (777, 0.3)
    assert body["seed"] == identity.request_seed(42, identity.prompt_id("Question 0: naïve 👩🏽‍🚀?"), 0)
    (message,) = body["messages"]
    assert "Question 0: naïve 👩🏽‍🚀?" in message["content"]
    assert "water plan" in message["content"], "an earlier answer helps the teacher"
    assert 'say "sorry" once' in message["content"]


def test_an_answer_cut_at_length_is_refused_as_that(ask: Callable[..., Artifact], stub_llm: StubServer) -> None:
    stub_llm.control(script=[{}, {"fault": "cut"}])
    artifact = ask(6)
    assert artifact.manifest.rows == 5
    assert artifact.manifest.quarantine == {"cut_at_length": 1}
    assert artifact.manifest.outcomes == {"ok": 5, "cut_at_length": 1}
    assert stub_llm.stats()["requests"] == 6, "it is not asked again"


@pytest.mark.parametrize(
    ("said", "rule", "shown"),
    [
        ("I'd rather not.", "not_the_schema", None),
        ("{}", "not_the_schema", None),
        ('```json\n{"steps": [], "output": "x"}\n```', "grammar_no_reasoning", '{"steps":[],"output":"x"}'),
        ('{"steps":[],"output":"x"}', "grammar_no_reasoning", None),
        ('{"steps":[{"title":"A:","body":"<|Output|>"}],"output":"x"}', "grammar_nested_tag", None),
        ('{"steps": [{"title": "A:", "body": "b"}], "output": "\\ud83d"}', "not_the_schema", None),
        ("half \ud83d", "not_the_schema", "half \ufffd"),
    ],
)
def test_what_a_teacher_says_wrong_is_refused(
    said: str, rule: str, shown: str | None, ask: Callable[..., Artifact], stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(judge_text=said)
    with pytest.raises(BuildError, match=f"{rule} 2"):
        ask(2)
    refused = refused_of(tmp_path / "artifacts" / "structured_cot" / "1.0.0")
    assert [row["raw"] for row in refused] == [shown or said] * 2


def test_a_refusal_is_quarantined_with_its_history(
    ask: Callable[..., Artifact], stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(chat_refusal="I can't write that.")
    with pytest.raises(BuildError, match="refusal 2"):
        ask(2)
    history = json.loads(refused_of(tmp_path / "artifacts" / "structured_cot" / "1.0.0")[0]["raw"])
    assert history == {
        "text": "Question 0: naïve 👩🏽‍🚀?", "outcomes": ["refusal"], "detail": "I can't write that.",
    }  # fmt: skip


def test_the_refused_are_asked_again_by_the_next_run_and_the_others_are_not(
    ask: Callable[..., Artifact], stub_llm: StubServer
) -> None:
    stub_llm.control(script=[{"status": 400}, {"status": 400}])
    with pytest.raises(QuarantineError, match="2 of 8 rows were refused"):
        ask(8, max_quarantine=0.1)
    stub_llm.reset()
    artifact = ask(8, max_quarantine=0.1)
    assert (artifact.manifest.rows, artifact.manifest.quarantine) == (8, {})
    assert stub_llm.stats()["requests"] == 2


def test_limit_asks_for_that_many_rows(ask: Callable[..., Artifact], stub_llm: StubServer) -> None:
    assert ask(6, limit=2).manifest.rows == 2
    assert stub_llm.stats()["requests"] == 2


def test_rows_stand_in_the_order_of_their_prompts(ask: Callable[..., Artifact]) -> None:
    prompts = ask(9).scan().select("prompt").collect()["prompt"].to_list()
    assert [int(prompt.split()[1].rstrip(":")) for prompt in prompts] == list(range(9))


def test_faults_lose_no_prompt(ask: Callable[..., Artifact], stub_llm: StubServer, tmp_path: Path) -> None:
    shares = {"error": 0.15, "drop": 0.05, "rate_limit": 0.05, "broken": 0.03, "empty": 0.03, "cut": 0.03}
    stub_llm.control(faults=shares)
    artifact = ask(160, retries=3)
    kept = artifact.scan().select("prompt").collect()["prompt"].to_list()
    lost = [row["row"] for row in refused_of(artifact.folder)]
    numbers = [int(prompt.split()[1].rstrip(":")) for prompt in kept]
    assert sorted(numbers + lost) == list(range(160))
    assert set(stub_llm.stats()["faults"]) == set(shares)
