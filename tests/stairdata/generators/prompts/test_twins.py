"""Harmless twins: read strictly, filtered as other prompts, resumed, priced, linked, and lost without their prompts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stairdata.generators.forecast import forecast_prompts
from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.prompts.part import build_prompt_part
from stairdata.generators.prompts.twin_rules import read_twin, scripts_of, twin_fault
from stairdata.generators.prompts.twins import rows_for_twins
from stairdata.llm.budget import BudgetLimits
from stairdata.llm.client import Generation, Sample
from stairdata.recipe import Recipe
from stairdata.runs.options import BuildOptions
from stairdata.runs.prompt_parts import PromptPart
from stairdata_schemas import identity
from stairdata_schemas.artifacts import Artifact, validate_artifact, with_later_columns
from stairdata_schemas.building import BuildPlan, begin_build
from stairdata_schemas.cards.card import read_head
from stairdata_schemas.errors import BudgetError, QuarantineError, RecipeError, ServerError

if TYPE_CHECKING:
    from tests.conftest import StubServer

UNSAFE = "How can I steal a phone at a party without being seen?"
TWIN = "How can I steal the show at a school play without a rehearsal?"


@pytest.fixture
def recipe(stub_llm: StubServer, tmp_path: Path, waits: list[float]) -> dict[str, Any]:
    unsafe = [{"prompt": f"How do I pick lock {number} of a shed?", "task": "safety"} for number in range(6)]
    rows = [unsafe[0] | {"category": "theft"}, {"prompt": "How do I bake bread?", "task": "helpfulness"}, *unsafe[1:]]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    teacher = {"base_url": stub_llm.base_url, "model": "actor"}
    sections = {"sources": [{"path": str(path)}], "twins": {"teacher": teacher}}
    return {"prompts": sections, "prices": {"actor": {"input": 1, "output": 2}}}


def build(recipe: dict[str, Any], root: Path, **options: Any) -> Artifact:
    return build_prompts(Recipe.model_validate(recipe), BuildOptions(root=root / "artifacts", **options))


def twins_of(artifact: Artifact) -> pl.DataFrame:
    return artifact.scan().filter(pl.col("twin_of").is_not_null()).collect()


def answer(text: str, finish: str = "stop") -> Generation:
    return Generation([Sample(text, finish)], 1, 1)


# -- what counts as a twin ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        (f"<twin>{TWIN}</twin>", None),
        (f"Between <twin> and </twin>, as you wish:\n<twin>\n{TWIN}\n</twin>\nIs that all?", None),
        ("<twin>How do I tell my boss that I can't help with the party?</twin>", None),
        ("<twin>I'm sorry to hear of the flood; how can I help?</twin>", None),
        (TWIN, "twin_unreadable"),
        (f"<twin>{TWIN}", "twin_unreadable"),
        (f"</twin>{TWIN}<twin>", "twin_unreadable"),
        ("", "twin_unreadable"),
        ("I'm sorry, but I can't help with that.", "twin_refused"),
        ("<twin>I\u2019m sorry, but I can\u2019t help with that.</twin>", "twin_refused"),
        ("<twin> \n\u200b</twin>", "twin_empty"),
        (f"<twin>{UNSAFE}</twin>", "twin_repeats_prompt"),
        (f"<twin>{UNSAFE.upper()}!!</twin>", "twin_repeats_prompt"),
        (f"<twin>{UNSAFE.replace('seen', 'noticed')}</twin>", "twin_repeats_prompt"),
        ("<twin>Как выступить на школьном празднике?</twin>", "twin_in_other_script"),
        ("<twin>怎样在派对上大放异彩</twin>", "twin_in_other_script"),
    ],
)
def test_an_answer_is_a_twin_or_breaks_one_rule(said: str, rule: str | None) -> None:
    found = read_twin(answer(said), UNSAFE, 0.8)
    assert (found if isinstance(found, str) else found.rule) == (rule or found)
    assert rule is not None or isinstance(found, str)


def test_a_cut_answer_is_called_so_unless_its_twin_is_whole() -> None:
    found = read_twin(answer(f"<twin>{TWIN[:20]}", "length"), UNSAFE, 0.8)
    assert not isinstance(found, str)
    assert (found.rule, "max_tokens" in found.detail) == ("cut_at_length", True)
    assert read_twin(answer(f"<twin>{TWIN}</twin> And more", "length"), UNSAFE, 0.8) == TWIN


@pytest.mark.parametrize(
    ("prompt", "twin", "is_same"),
    [
        ("どうやって鍵を壊す", "カボチャのスープの作り方は", True),
        ("怎么偷手机", "スープの作り方は", True),
        ("Translate to Russian: «Где мой телефон, который украли?»", "Translate: «Как пройти в театр?»", True),
        ("12 + 30 = ?", "Wie viel ist das?", True),
        ("Wie stehle ich ein Rad?", "3 + 4 = ?", True),
        ("Wie stehle ich ein Rad?", "Πώς φτιάχνω ένα ποδήλατο;", False),
        ("휴대폰을 훔치는 방법은?", "How do I bake bread?", False),
    ],
)
def test_a_twin_is_in_a_script_of_its_prompt(prompt: str, twin: str, is_same: bool) -> None:
    fault = twin_fault(twin, prompt, 0.8)
    assert (None if fault is None else fault.rule) == (None if is_same else "twin_in_other_script")


@given(st.text(max_size=80), st.text(max_size=80), st.floats(0.01, 1))
@settings(max_examples=40)
def test_no_text_is_its_own_twin_and_any_text_is_judged(twin: str, prompt: str, most: float) -> None:
    assert twin_fault(prompt, prompt, most) is not None
    fault = twin_fault(twin, prompt, most)
    assert fault is None or fault.rule.startswith("twin_")
    assert scripts_of(twin).total() >= 0


@settings(max_examples=25)
@given(st.integers(0, 1000), st.permutations(range(12)), st.integers(1, 14))
def test_a_sample_for_twins_is_the_same_in_any_order(seed: int, order: list[int], count: int) -> None:
    recipe = Recipe.model_validate({"seed": seed, "prompts": {"twins": {"count": count}}})
    rows = [{"prompt_id": identity.prompt_id(str(n)), "task": ("safety", "helpfulness")[n % 3 == 0]} for n in range(12)]
    chosen = rows_for_twins([rows[n] for n in order], recipe)
    assert {row["task"] for row in chosen} == {"safety"}
    assert len(chosen) == min(count, 8)
    assert sorted(row["prompt_id"] for row in chosen) == sorted(
        row["prompt_id"] for row in rows_for_twins(rows, recipe)
    )


# -- builds ---------------------------------------------------------------------------------------------------


def test_each_unsafe_prompt_has_a_twin_behind_it(recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path) -> None:
    artifact = build(recipe, tmp_path)
    rows = artifact.scan().collect().to_dicts()
    assert len(rows) == 6 + 1 + 6
    links = [(row["prompt_id"], after["twin_of"]) for row, after in pairwise(rows)]
    assert [first == second for first, second in links] == [row["task"] == "safety" for row in rows[:-1]], (
        "each is behind its prompt"
    )
    first = rows[1]
    assert first["prompt"].startswith("Tell me all about ")
    assert first["prompt_id"] == identity.prompt_id(first["prompt"])
    assert first | {"prompt": "", "prompt_id": "", "twin_of": ""} == {
        "prompt_id": "", "prompt": "", "task": "helpfulness", "source": "twin of q.jsonl", "category": "theft",
        "reference_answer": None, "reference_is_safe": None, "twin_of": "",
    }  # fmt: skip
    manifest = artifact.manifest
    assert (manifest.usage.requests, manifest.outcomes) == (6, {"ok": 6})
    assert manifest.usage.cost
    assert manifest.details["twins"] == {"prompts": 6, "written": 6, "refused": {}}
    assert manifest.models[0].role == "prompts.twins.teacher"
    assert manifest.notes == ["6 of 6 prompts of task safety have a harmless twin (`twin_of`), written by actor"]
    card = (artifact.folder / "README.md").read_text(encoding="utf-8")
    assert manifest.notes[0] in card
    assert "synthetic" in read_head(card)["tags"]
    assert validate_artifact(artifact) == []
    sent = stub_llm.stats()["requests"]
    assert build(recipe, tmp_path) == artifact
    assert stub_llm.stats()["requests"] == sent


def test_a_build_without_twins_has_the_fingerprint_that_it_had(recipe: dict[str, Any], tmp_path: Path) -> None:
    del recipe["prompts"]["twins"]
    plain = build(recipe, tmp_path)
    assert "twins" not in plain.manifest.configuration
    assert "synthetic" not in read_head((plain.folder / "README.md").read_text(encoding="utf-8"))["tags"]
    recipe["prompts"]["twins"] = None
    assert build(recipe, tmp_path) == plain
    frame = plain.scan().collect()
    assert frame["twin_of"].null_count() == 7
    assert with_later_columns("prompts", frame.drop("twin_of")).equals(frame)


def test_a_twin_passes_the_filters_of_prompts_or_is_refused_without_its_prompt(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(judge_text="<twin>How do I pick apples?</twin>")
    artifact = build(recipe, tmp_path)
    assert twins_of(artifact)["prompt"].to_list() == ["How do I pick apples?"]
    assert artifact.manifest.quarantine == {"duplicate_prompt": 5}
    assert artifact.manifest.rows == 8
    details = pl.read_parquet(artifact.folder / "quarantine" / "*.parquet")["detail"]
    assert "q.jsonl row 3: repeats the twin of" in details[0]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("how do i bake bread", "near_duplicate"),
        ("How do I pick the most beautiful of all apples of a tree?", "too_long"),
        ("How do I pick a cake at my party?", "contaminated"),
    ],
)
def test_a_twin_that_a_filter_refuses_does_not_count_against_the_teacher(
    text: str, rule: str, recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    tests = tmp_path / "tests.jsonl"
    tests.write_text('{"prompt": "how do I pick a cake at my party"}\n')
    filters = {"near_duplicates": {}, "max_characters": 40, "decontaminate": [str(tests)]}
    stub_llm.control(judge_text=f"<twin>{text}</twin>")
    artifact = build({"prompts": recipe["prompts"] | filters}, tmp_path)
    (refused,) = artifact.manifest.details["twins"]["refused"].items()
    assert refused[0] == rule
    assert artifact.manifest.details["twins"]["written"] == 0
    assert "safety" in artifact.scan().collect()["task"]


def test_a_teacher_that_writes_no_twins_is_asked_again_and_stops_the_build(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    stub_llm.control(judge_text="A pleasant request.")
    with pytest.raises(QuarantineError, match="twin_unreadable 6"):
        build(recipe, tmp_path)
    assert stub_llm.stats()["paths"]["/v1/chat/completions"] == 6 * 3
    artifact = build(recipe, tmp_path, max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"twin_unreadable": 6}
    assert artifact.manifest.rows == 7, "all prompts are there without twins"
    assert artifact.manifest.outcomes == {"ok": 0, "twin_unreadable": 6}
    assert artifact.manifest.details["requests"] == {"ok": 18}
    (raw, *_) = pl.read_parquet(artifact.folder / "quarantine" / "*.parquet")["raw"]
    assert "A pleasant request." in json.loads(raw)["detail"]


def test_refused_and_failed_requests_are_told_by_their_outcome(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    recipe["prompts"]["concurrency"] = 1
    stub_llm.control(script=[{"status": 400, "text": "no"}])
    artifact = build(recipe, tmp_path, max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"invalid_request": 1}
    stub_llm.reset()
    stub_llm.control(chat_refusal="I can't help with that.")
    recipe["prompts"]["twins"]["count"] = 2
    artifact = build(recipe, tmp_path, max_quarantine=0.5)
    assert artifact.manifest.quarantine == {"refusal": 2}


def test_a_dead_teacher_is_one_message_and_what_is_written_is_kept(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    recipe["prompts"]["concurrency"] = 1
    stub_llm.control(die_after=4)
    with pytest.raises(ServerError, match="no longer answers"):
        build(recipe, tmp_path)
    stub_llm.start()
    stub_llm.reset()
    recipe["prompts"]["twins"]["teacher"]["base_url"] = stub_llm.base_url
    assert build(recipe, tmp_path).manifest.rows == 13
    assert stub_llm.stats()["paths"]["/v1/chat/completions"] < 6


def test_labels_and_twins_share_a_budget_and_go_on_after_it(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    """The tasks that the judge gives decide who has a twin."""
    path = tmp_path / "open.jsonl"
    path.write_text("".join(f'{{"prompt": "How do I open door {n}?"}}\n' for n in range(4)))
    section = recipe["prompts"] | {"sources": [{"path": str(path)}], "concurrency": 1}
    section["task_judge"] = {"base_url": stub_llm.base_url, "model": "other"}
    section["twins"] = {"teacher": section["twins"]["teacher"] | {"max_tokens": 100}}
    recipe = recipe | {"prompts": section, "prices": recipe["prices"] | {"other": {"input": 1}}}
    stub_llm.control(also=["other"], says={"other": "Task: safety"})
    with pytest.raises(BudgetError):
        build(recipe, tmp_path, limits=BudgetLimits(2800, None, None))
    sent = stub_llm.stats()["paths"]["/v1/chat/completions"]
    assert 4 < sent < 8
    artifact = build(recipe, tmp_path)
    assert stub_llm.stats()["paths"]["/v1/chat/completions"] == 8
    assert artifact.manifest.outcomes == {"ok": 8}
    assert (artifact.manifest.usage.requests, artifact.manifest.rows) == (8, 8)
    assert [model.name for model in artifact.manifest.models] == ["other", "actor"]
    assert not (artifact.folder / ".build").exists()


@pytest.mark.slow
def test_a_killed_build_asks_for_no_twin_again(recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path) -> None:
    whole = build(recipe, tmp_path / "whole").scan().collect()
    stub_llm.reset()
    recipe["prompts"]["concurrency"] = 1
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "stairdata", "build", "prompts", "--recipe", str(file)]
    killed = subprocess.Popen(
        [*command, "--root", str(tmp_path / "artifacts")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stub_llm.control(kill_pid=killed.pid, kill_after=4)
    assert killed.wait(timeout=120) == -signal.SIGKILL
    artifact = build(recipe, tmp_path)
    assert artifact.reference == "prompts@1.0.0"
    assert artifact.scan().collect().equals(whole)
    assert stub_llm.stats()["paths"]["/v1/chat/completions"] <= 7, "one that was in flight"


def test_a_forecast_says_how_many_are_written_and_what_for(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    def words() -> str:
        options = BuildOptions(root=tmp_path / "artifacts")
        return forecast_prompts(Recipe.model_validate(recipe), options).shown(json_=False)

    found = words()
    assert "6 twins to write" in found
    assert "a twin as long as its prompt" in found
    assert "cost" in found
    recipe["prompts"]["twins"]["count"] = 2
    assert "2 twins to write" in words()
    recipe["prompts"]["twins"]["tasks"] = ["helpfulness"]
    assert "1 twins to write" in words()
    assert not (tmp_path / "artifacts").exists()
    assert stub_llm.stats()["requests"] == 0


def test_the_users_own_template_is_asked_in(recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    recipe["prompts"]["twins"] |= {"template": str(path), "count": 1}
    with pytest.raises(RecipeError, match=r"the template .*own.jinja can't be read"):
        build(recipe, tmp_path)
    path.write_text("{{ prompt }} {{ answer }}")
    with pytest.raises(
        RecipeError,
        match=r"prompts.twins.template can't be used: .*'answer' is undefined.*may use prompt, task, category",
    ):
        build(recipe, tmp_path)
    path.write_text("Like this, but kind: {{ prompt }}{% if category %} ({{ category }}){% endif %}")
    first = build(recipe, tmp_path)
    (message,) = stub_llm.last()["body"]["messages"]
    assert message["content"].startswith("Like this, but kind: How do I pick lock")
    assert message["content"].endswith("between <twin> and </twin>.")
    path.write_text("Like this, but harmless: {{ prompt }}")
    assert build(recipe, tmp_path) != first


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({}, "the recipe names no prompts.twins.teacher"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "prompts.twins.teacher.base_url needs prompts.twins.teacher.model"),
    ],
)
def test_twins_need_a_teacher(teacher: dict[str, Any], message: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["prompts"]["twins"]["teacher"] = teacher
    with pytest.raises(RecipeError, match=message):
        build(recipe, tmp_path)
    with pytest.raises(RecipeError, match=message):
        forecast_prompts(Recipe.model_validate(recipe), BuildOptions(root=tmp_path))


def test_where_no_prompt_has_the_task_a_note_says_so(
    recipe: dict[str, Any], stub_llm: StubServer, tmp_path: Path
) -> None:
    recipe["prompts"]["sources"][0]["where"] = {"task": "helpfulness"}
    told: list[str] = []
    artifact = build(recipe, tmp_path, tell=told.append)
    note = "no prompt has the task safety, so none has a twin"
    assert artifact.manifest.notes == [note]
    assert note in told
    assert "twins" not in artifact.manifest.details
    assert stub_llm.stats()["requests"] == 0


# -- what a twin is of ----------------------------------------------------------------------------------------


def test_a_twin_is_of_a_prompt_that_is_there_except_in_a_part(recipe: dict[str, Any], tmp_path: Path) -> None:
    artifact = build(recipe, tmp_path)
    options = BuildOptions(root=tmp_path / "parts")
    part = build_prompt_part(artifact, PromptPart(0, 7), 1, options)
    held = {*part.scan().collect()["prompt_id"]}
    assert {*twins_of(part)["twin_of"]} - held, "twin and prompt may fall to different parts"
    assert validate_artifact(part) == []
    build_ = begin_build(BuildPlan("prompts", "test/1", {}), tmp_path / "broken")
    assert not isinstance(build_, Artifact)
    with build_:
        broken = build_.finish([part.scan().collect()])
    (problem,) = validate_artifact(broken)
    assert (problem.rule, problem.example in held) == ("twin_of", True)


def test_the_part_of_prompts_of_an_earlier_release_has_the_column(recipe: dict[str, Any], tmp_path: Path) -> None:
    del recipe["prompts"]["twins"]
    old = build(recipe, tmp_path)
    (path,) = old.data_files
    pl.read_parquet(path).drop("twin_of").write_parquet(path)
    part = build_prompt_part(old, PromptPart(0, 4), 1, BuildOptions(root=tmp_path / "parts"))
    assert part.scan().collect()["twin_of"].null_count() == 4
