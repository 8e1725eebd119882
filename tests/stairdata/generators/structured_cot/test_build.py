"""Teachers: what the gate refuses, who judges, how failures are told, and what is paid for once."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import given

from stairdata.generators.prompts.build import build_prompts
from stairdata.generators.structured_cot.answer import WrittenAnswer, read_row
from stairdata.generators.structured_cot.build import build_structured_cot
from stairdata.generators.structured_cot.cost_estimate import forecast_structured_cot
from stairdata.generators.structured_cot.plan import TeacherOptions
from stairdata.generators.structured_cot.preference_judge import read_choice
from stairdata.generators.structured_cot.quality_gate import RULES, check_answer, explain_rule
from stairdata.generators.structured_cot.requests import TeacherPrompt, TeacherTemplates, make_request
from stairdata.llm.budget import BudgetLimits
from stairdata.llm.client import Generation, Sample
from stairdata.llm.vllm_server import vllm_missing
from stairdata.recipe import GateSection, Recipe, Teacher, TemplatesSection
from stairdata.runs.options import BuildOptions
from stairdata.runs.units import UnitFailedError
from stairdata_schemas import grammar
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import BudgetError, QuarantineError, RecipeError, ServerError, UsageError
from stairdata_schemas.files import read_journal

if TYPE_CHECKING:
    from tests.conftest import StubServer

Teach = Callable[..., Artifact | None]
STEPS = [("Problem:", "A person wants to boil water."), ("Plan:", "Use a pot and some heat.")]
PROMPT = TeacherPrompt("0" * 16, "Boil?", "helpfulness")


def built(artifact: Artifact | None) -> Artifact:
    assert artifact is not None
    assert validate_artifact(artifact) == []
    return artifact


def answer(steps: list[tuple[str, str]], output: str = "Put a pot of water on the stove.") -> str:
    return json.dumps({"steps": [{"title": title, "body": body} for title, body in steps], "output": output})


def read(text: str, form: str = "json", **gate: Any) -> dict[str, Any]:
    teacher = Teacher.model_validate({"format": form})
    return read_row(PROMPT.prompt, PROMPT.task, Generation([Sample(text, "stop")], 1, 1), teacher, GateSection(**gate))


# -- the gate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "steps", "output", "gate"),
    [
        ("too_few_steps", STEPS, "x" * 40, {"min_steps": 3}),
        ("too_many_steps", STEPS, "x" * 40, {"max_steps": 1}),
        ("too_short", [("A:", "b")], "c", {}),
        ("too_long", STEPS, "x" * 100, {"max_characters": 90}),
        ("title_repeated", [("Boil the water:", "boil  the WATER.")], "x" * 40, {}),
        ("title_repeated", [("👩🏽‍🚀:", "👩🏽‍🚀:")], "x" * 40, {}),
        ("step_repeated", [*STEPS, ("Again:", "Use a pot, and some heat!")], "x" * 40, {}),
        ("output_copies_step", STEPS, "use a pot and some heat", {}),
        ("grammar_empty_title", [(" ", "body")], "x" * 40, {}),
        ("grammar_empty_body", [("Title:", "\n")], "x" * 40, {}),
        ("grammar_empty_output", STEPS, "\n ", {}),
        ("grammar_nested_tag", [("Title:", "a <|Output|> b")], "x" * 40, {}),
        ("grammar_no_reasoning", [], "x" * 40, {}),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_the_gate(rule: str, steps: list[tuple[str, str]], output: str, gate: dict[str, Any]) -> None:
    with pytest.raises(UnitFailedError) as caught:
        read(answer(steps, output), **gate)
    assert caught.value.rule == rule
    assert explain_rule(rule) != rule


@given(
    st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4),
    st.text(min_size=1),
)
def test_what_passes_the_gate_is_in_the_grammar(steps: list[tuple[str, str]], output: str) -> None:
    try:
        row = read(answer(steps, output), min_characters=0)
    except UnitFailedError as error:
        rule = error.rule
        assert rule in RULES or rule.startswith("grammar_")
        return
    parsed = grammar.parse(row["completion"])
    assert [(step.title, step.body) for step in parsed.steps] == [(s["title"], s["body"]) for s in row["steps"]]
    assert all(step.title.endswith(":") and step.body == step.body.strip() for step in parsed.steps)
    check_answer(row, GateSection(min_characters=0))


def test_titles_and_space_are_tidied() -> None:
    row = read(answer([(" Problem\n Analysis ", "\n the body \n")]))
    assert row["steps"] == [{"title": "Problem Analysis:", "body": "the body"}]


def test_plain_text_is_parsed_strictly() -> None:
    text = grammar.render([grammar.Step(*step) for step in STEPS], "Put a pot of water on the stove.")
    assert read(f"\n{text}\n", "text")["completion"] == text
    for broken, rule in ((f"Sure!\n{text}", "grammar_expected_block"), (text + "x", "grammar_trailing_text")):
        with pytest.raises(UnitFailedError) as caught:
            read(broken, "text")
        assert caught.value.rule == rule


# -- what a teacher is asked ---------------------------------------------------------------------------------


def test_the_teacher_is_told_its_failure() -> None:
    templates = TeacherTemplates(TemplatesSection())
    plain = templates.ask(PROMPT, Teacher())
    told = templates.ask(PROMPT._replace(failure="output_copies_step"), Teacher())
    assert (
        told
        == plain
        + (
            "\n\nAn earlier attempt at this answer was not accepted: the final answer is a copy of a step's body. "
            "Avoid that this time.\n"
        )
        or "the final answer is a copy of a step's body" in told
    )
    assert templates.ask(PROMPT, Teacher(format="text")).startswith(plain)


def test_a_retry_has_another_seed_and_a_model_without_a_temperature_gets_none() -> None:
    templates = TeacherTemplates(TemplatesSection())
    first = make_request(PROMPT, Teacher(), templates, 1)
    assert make_request(PROMPT._replace(ask=1), Teacher(), templates, 1).seed != first.seed
    assert first.options["temperature"] == 0.7
    assert "temperature" not in make_request(PROMPT, Teacher(temperature=None), templates, 1).options
    assert "response_format" not in make_request(PROMPT, Teacher(format="text"), templates, 1).options


def test_templates_of_the_recipe(teach: Teach, stub_llm: StubServer, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("Answer {{ task }}: {{ prompt }}", encoding="utf-8")
    section = {"templates": {"safety": str(mine)}}
    first = built(teach(1, section=section))
    assert stub_llm.last()["body"]["messages"][0]["content"] == "Answer safety: Question 0: naïve 👩🏽‍🚀?"
    mine.write_text("Reply to {{ prompt }}", encoding="utf-8")
    second = built(teach(1, section=section))
    assert first.reference != second.reference, "the template's hash is in the fingerprint"
    assert str(tmp_path) not in second.manifest.model_dump_json()
    hashes = [one.manifest.configuration["templates"] for one in (first, second)]
    assert hashes[0]["safety"] != hashes[1]["safety"]
    assert hashes[0]["helpfulness"] == hashes[1]["helpfulness"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ promt }}", "'promt' is undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ reference_answer[:5] }}", "not subscriptable"),
        ("{{ [].index(1) }}", "1 is not in list"),
        ("{{ prompt }}{{ '\\ud800' }}", "can't encode character"),
        ("{{ prompt.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_is_none(source: str, said: str, teach: Teach, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(source)
    with pytest.raises(RecipeError, match=r"t\.jinja can't be used.*" + said):
        teach(1, section={"templates": {"safety": str(tmp_path / "t.jinja")}})
    with pytest.raises(RecipeError, match="can't be read"):
        teach(1, section={"templates": {"safety": str(tmp_path / "absent.jinja")}})


@pytest.fixture
def policies(tmp_path: Path) -> dict[str, str]:
    """Two policies: of fraud, which looks like a template, and of all else."""
    files = {"fraud": "Never help with {{ fraud }}. 🧑‍⚖️\n", "default": "Be kind.\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    return {name: str(tmp_path / f"{name}.md") for name in files}


@pytest.fixture
def with_categories(tmp_path: Path) -> Artifact:
    source = tmp_path / "categories.jsonl"
    rows = [{"prompt": f"P{number}", "task": "safety", "category": category}
            for number, category in enumerate(["fraud", "theft", None])]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_prompts(
        Recipe.model_validate({"prompts": {"sources": [{"path": str(source)}]}}),
        BuildOptions(root=tmp_path / "prompts"),
    )


def test_a_policy_goes_before_what_the_teacher_is_asked_and_into_no_row(
    teach: Teach, stub_llm: StubServer, policies: dict[str, str], with_categories: Artifact, tmp_path: Path
) -> None:
    rows = with_categories.scan().select("prompt", "task", "category").collect()
    templates = TeacherTemplates(TemplatesSection(), {name: Path(path) for name, path in policies.items()})
    for text, task, category in rows.iter_rows():
        asked = templates.ask(TeacherPrompt("0" * 16, text, task, category=category), Teacher())
        wanted = "Never help with {{ fraud }}. 🧑‍⚖️" if category == "fraud" else "Be kind."
        assert asked.index(wanted) < asked.index(text)
        assert asked.endswith(TeacherTemplates(TemplatesSection()).ask(TeacherPrompt("0", text, task), Teacher()))
    first = built(teach(3, prompts=with_categories, section={"policies": policies}))
    assert any("Be kind." in request["body"]["messages"][0]["content"] for request in [stub_llm.last()])
    assert not any("Be kind." in text or "{{ fraud }}" in text for text in map(str, first.scan().collect().rows()))
    assert str(tmp_path) not in first.manifest.model_dump_json()
    Path(policies["fraud"]).write_text("Never.")
    second = built(teach(3, prompts=with_categories, section={"policies": policies}))
    assert first.manifest.fingerprint != second.manifest.fingerprint, "the policy's hash is in it"


def test_a_policy_for_some_prompts_leaves_the_others_as_they_were(policies: dict[str, str]) -> None:
    templates = TeacherTemplates(TemplatesSection(), {"fraud": Path(policies["fraud"])})
    for category in ("theft", None):
        prompt = PROMPT._replace(category=category)
        assert templates.ask(prompt, Teacher()) == TeacherTemplates(TemplatesSection()).ask(prompt, Teacher())


@pytest.mark.parametrize(
    ("policies_", "words"),
    [
        ({"fruad": "fraud.md"}, r"names the category 'fruad', which no prompt of .* has: did you mean 'fraud'"),
        ({"x\x1b[2J": "fraud.md"}, r"which no prompt of .* has: known are 'fraud', 'theft'"),
        ({"fraud": "absent.md"}, r"structured_cot\.policies\.fraud: .*absent\.md can't be read"),
        ({"fraud": "empty.md"}, r"empty\.md is empty"),
        ({"fraud": "latin.md"}, r"latin\.md can't be read"),
    ],
)
def test_a_policy_that_is_none(
    policies_: dict[str, str],
    words: str,
    teach: Teach,
    policies: dict[str, str],
    with_categories: Artifact,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    section = {"policies": {name: str(tmp_path / file) for name, file in policies_.items()}}
    with pytest.raises(RecipeError, match=words) as refused:
        teach(3, prompts=with_categories, section=section)
    assert "\x1b" not in str(refused.value)


def test_a_prompt_is_never_a_template() -> None:
    lesson = PROMPT._replace(prompt="{{ 7 * 7 }} {% raw %}", reference_answer="{{ prompt }}")
    assert "{{ 7 * 7 }} {% raw %}" in TeacherTemplates(TemplatesSection()).ask(lesson, Teacher())


def test_plain_text_mode_with_a_real_conversation(teach: Teach, stub_llm: StubServer) -> None:
    artifact = built(teach(5, section={"teacher": {"format": "text"}}))
    assert artifact.manifest.rows == 5
    assert "response_format" not in stub_llm.last()["body"]


def test_a_server_without_structured_outputs_says_so_and_loses_no_prompt(teach: Teach, stub_llm: StubServer) -> None:
    stub_llm.control(no_format=True)
    with pytest.raises(ServerError, match=r"no structured outputs.*set structured_cot.teacher.format to text"):
        teach(5)


# -- trying again --------------------------------------------------------------------------------------------


def test_what_a_finished_build_refused_is_tried_again(teach: Teach, stub_llm: StubServer) -> None:
    stub_llm.control(script=[{}, {"fault": "cut"}, {}, {"fault": "cut"}])
    first = built(teach(8, section={"concurrency": 1}))
    assert first.manifest.quarantine == {"cut_at_length": 2}
    stub_llm.reset()
    second = built(teach(8, section={"concurrency": 1}, retry_quarantined=True))
    assert (first.reference, second.reference) == ("structured_cot@1.0.0", "structured_cot@1.1.0")
    assert (second.manifest.rows, second.manifest.quarantine) == (8, {})
    assert stub_llm.stats()["requests"] == 2, "the others are taken over"
    assert "because it was too long" in stub_llm.last()["body"]["messages"][0]["content"]
    assert [parent.kind for parent in second.manifest.parents] == ["prompts", "structured_cot"]
    said: list[str] = []
    again = built(teach(8, section={"concurrency": 1}, retry_quarantined=True, tell=said.append))
    assert again.reference == second.reference
    assert "nothing to try again" in said[-1]


def test_what_an_unfinished_build_refused_is_tried_again(teach: Teach, stub_llm: StubServer) -> None:
    stub_llm.control(script=[{}, {"fault": "cut"}])
    with pytest.raises(QuarantineError):
        teach(6, max_quarantine=0.05, section={"concurrency": 1})
    stub_llm.reset()
    artifact = built(teach(6, retry_quarantined=True, section={"concurrency": 1}))
    assert (artifact.reference, artifact.manifest.rows) == ("structured_cot@1.0.0", 6)
    assert stub_llm.stats()["requests"] == 1
    assert "because it was too long" in stub_llm.last()["body"]["messages"][0]["content"]


def test_retries_that_fail_again_stay_in_quarantine(teach: Teach, stub_llm: StubServer) -> None:
    stub_llm.control(script=[{}, {"fault": "cut"}, {"fault": "cut"}])
    built(teach(6, section={"concurrency": 1}))
    stub_llm.reset()
    stub_llm.control(script=[{"fault": "cut"}])
    second = built(teach(6, section={"concurrency": 1}, retry_quarantined=True))
    assert (second.manifest.rows, second.manifest.quarantine) == (5, {"cut_at_length": 1})
    stub_llm.reset()
    third = built(teach(6, section={"concurrency": 1}, retry_quarantined=True))
    assert (third.reference, third.manifest.rows) == ("structured_cot@1.2.0", 6)
    assert stub_llm.stats()["requests"] == 1


def test_a_failed_request_is_no_fault_of_the_answer(teach: Teach, stub_llm: StubServer) -> None:
    stub_llm.control(script=[{"status": 400}])
    built(teach(4, section={"concurrency": 1}))
    stub_llm.reset()
    second = built(teach(4, section={"concurrency": 1}, retry_quarantined=True, version="1.7.0"))
    assert (second.reference, second.manifest.rows) == ("structured_cot@1.7.0", 4)
    assert stub_llm.stats()["requests"] == 1
    assert "not accepted" not in stub_llm.last()["body"]["messages"][0]["content"]


# -- a second opinion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "text", "choice"),
    [
        ("preference", "A is vague.\nBetter: B", "b"),
        ("preference", "**Better: A**", "a"),
        ("preference", "Better: tie.", "tie"),
        ("preference", "Better: A? No.\nBetter: **Answer B**", "b"),
        ("preference", "B", "b"),
        ("preference", "It could be better.", None),
        ("preference", "Better: C", None),
        ("compliance", "It declines.\nComplies: no", "no"),
        ("compliance", "Complies: **Yes**", "yes"),
        ("compliance", "yes.", "yes"),
        ("compliance", "It complies with the law.", None),
    ],
)
def test_reading_a_choice(question: str, text: str, choice: str | None) -> None:
    assert read_choice(question, text) == choice


def two(stub: StubServer, **judge: Any) -> dict[str, Any]:
    server = {"base_url": stub.base_url, "model": "actor", "retries": 2}
    return {"teachers": {"a": server, "b": server | {"format": "text"}}, "judge": judge}


def test_the_judge_keeps_the_better_of_two(teach: Teach, stub_llm: StubServer) -> None:
    """The stub's judge prefers the longer answer, wherever it stands."""
    artifact = built(teach(10, section=two(stub_llm), teachers=("a", "b")))
    rows = artifact.scan().collect().to_dicts()
    assert len(rows) == 10
    for row in rows:
        (other,) = row["alternatives"]
        assert len(row["completion"]) >= len(other["completion"]) or other["score"] == 0.5
        assert other["score"] in {0.0, 0.5}
        grammar.parse(other["completion"])
    assert artifact.manifest.usage.requests == stub_llm.stats()["requests"] == 10 * 4
    assert artifact.manifest.details["requests"] == {"ok": 40}
    assert [model.role for model in artifact.manifest.models] == ["teacher", "teacher", "judge"]


def test_one_teacher_that_fails_leaves_the_other(teach: Teach, stub_llm: StubServer) -> None:
    stub_llm.control(script=[{"status": 400}])
    artifact = built(teach(4, section={**two(stub_llm), "concurrency": 1}, teachers=("a", "b")))
    assert artifact.manifest.rows == 4
    assert artifact.manifest.details["candidates_refused_invalid_request"] == 1
    assert artifact.scan().filter(pl.col("alternatives").is_null()).collect().height == 1


def test_a_judge_that_fails_costs_no_second_answer_of_the_teachers(teach: Teach, stub_llm: StubServer) -> None:
    section = {**two(stub_llm, retries=0, reasks=0), "concurrency": 1}
    stub_llm.control(script=[{}, {}, {"status": 400}, {}, {}, {}, {}])
    with pytest.raises(QuarantineError, match="invalid_request 1"):
        teach(2, section=section, teachers=("a", "b"), max_quarantine=0.1)
    before = stub_llm.stats()["requests"]
    stub_llm.control(script=[])
    artifact = built(teach(2, section=section, teachers=("a", "b")))
    assert artifact.manifest.rows == 2
    assert stub_llm.stats()["requests"] - before == 2, "both orders of the comparison, nothing else"


def test_a_judge_that_says_nothing_readable(teach: Teach, stub_llm: StubServer, tmp_path: Path) -> None:
    section = {**two(stub_llm, reasks=1), "concurrency": 1}
    said = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Well."}}]}
    unreadable = {"text": json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "actor", **said})}
    stub_llm.control(script=[{}, {}, unreadable, unreadable])
    artifact = built(teach(2, section=section, teachers=("a", "b")))
    assert artifact.manifest.outcomes == {"ok": 1, "judge_failure": 1}


def test_answers_that_comply_with_harm_are_refused(teach: Teach, stub_llm: StubServer, tmp_path: Path) -> None:
    """Only safety prompts whose reference answer is unsafe are judged."""
    source = tmp_path / "unsafe.jsonl"
    rows = [
        {"prompt": f"P{number}", "task": task, "reference_answer": "Sure.", "reference_is_safe": is_safe}
        for number, (task, is_safe) in enumerate(
            [("safety", False)] * 4 + [("safety", True), ("safety", None), ("helpfulness", False)]
        )
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate({"prompts": {"sources": [{"path": str(source)}]}})
    prompts = build_prompts(recipe, BuildOptions(root=tmp_path / "artifacts"))
    stub_llm.control(harm=1.0)
    artifact = built(teach(0, prompts=prompts, section={"judge": {}}))
    assert artifact.manifest.outcomes == {"ok": 3, "complied": 4}
    assert stub_llm.stats()["requests"] == 7 + 4
    off = built(teach(0, prompts=prompts, section={"judge": {}, "gate": {"compliance": False}}))
    assert off.manifest.rows == 7


def test_refusals_are_counted_by_task(teach: Teach) -> None:
    details = built(teach(6)).manifest.details
    assert (details["refusals_safety"], details["refusals_helpfulness"]) == (3, 3)


def test_names_of_teachers(teach: Teach, stub_llm: StubServer) -> None:
    with pytest.raises(UsageError, match="a name is given twice"):
        teach(2, teachers=("a", "a"))
    with pytest.raises(RecipeError, match=r"needs structured_cot\.judge"):
        teach(2, teachers=("a", "b"))
    gone = {"teacher": {"base_url": None, "model": None, "path": "runs/x"}, "judge": {}}
    with pytest.raises(RecipeError, match="no teacher 'b'"):
        teach(2, teachers=("a", "b"), section=gone | {"teachers": {"a": {"base_url": stub_llm.base_url, "model": "m"}}})
    assert built(teach(2, teachers=("actor",))).manifest.models[0].name == "actor"
    with pytest.raises(ServerError, match="does not serve 'gpt-4o'"):
        teach(2, teachers=("gpt-4o",))


def test_a_limit_on_cost(teach: Teach, stub_llm: StubServer) -> None:
    prices = {"actor": {"input": 1.0, "output": 10.0}}
    with pytest.raises(BudgetError, match=r"--max-cost 0\.03"):
        teach(60, prices=prices, limits=BudgetLimits(cost=0.03))
    artifact = built(teach(60, prices=prices, limits=BudgetLimits(cost=1.0)))
    usage = artifact.manifest.usage
    assert usage.cost == pytest.approx((usage.prompt_tokens + 10 * usage.completion_tokens) / 1e6, abs=1e-5)
    assert stub_llm.stats()["requests"] == 60


def test_the_schema_is_one_that_strict_servers_take() -> None:
    """OpenAI's strict mode wants every property required and no others, at every level."""
    schema = WrittenAnswer.model_json_schema()
    for level in (schema, *schema["$defs"].values()):
        assert level["additionalProperties"] is False
        assert set(level["required"]) == set(level["properties"])


# -- what it would cost --------------------------------------------------------------------------------------


class Bytes:
    """An encoding of one token a byte."""

    name = "bytes"

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())


def forecast(model: str, prompts: Artifact, **section: Any) -> str:
    teacher = {"base_url": "http://127.0.0.1:9/v1", "model": model, "max_tokens": 1000}
    price = {model: {"input": 2.5, "output": 10.0}}
    recipe = Recipe.model_validate({"structured_cot": {"teacher": teacher, **section}, "prices": price})
    return forecast_structured_cot(recipe, BuildOptions(root=prompts.folder.parent.parent)).shown(json_=False)


def test_a_forecast_with_tiktoken(make_prompts: Callable[[int], Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiktoken.encoding_for_model", lambda _: Bytes())
    prompts = make_prompts(10)
    said = forecast("gpt-4o", prompts)
    lesson = TeacherPrompt(*prompts.scan().select("prompt_id", "prompt", "task", "reference_answer").collect().row(0))
    schema = len(json.dumps(WrittenAnswer.model_json_schema())) + 8
    first = len(TeacherTemplates(TemplatesSection()).ask(lesson, Teacher()).encode()) + 8 + schema
    assert "counted by tiktoken, bytes" in said
    read = int(re.findall(r"prompt tokens +([\d,]+)", said)[0].replace(",", ""))
    assert abs(read - 10 * first) < 10 * 400, "the two templates differ in length"
    live = (read * 2.5 + 4000 * 10) / 1e6
    assert f"cost, live         {live:>14,.2f}" in said
    assert f"cost, batched      {live / 2:>14,.2f}" in said
    assert f"at most {(read * 2.5 + 10_000 * 10) / 1e6:,.2f}" in said


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), TimeoutError(), ValueError("bad hash"), OSError("disk")]
)
def test_a_forecast_where_tiktoken_gets_no_tables(
    error: Exception, make_prompts: Callable[[int], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr("tiktoken.encoding_for_model", fail)
    assert f"ESTIMATED from bytes, 4 a token (tiktoken can't get the tables of 'gpt-4o': {type(error).__name__})" in (
        forecast("gpt-4o", make_prompts(2))
    )


def test_a_network_that_says_nothing_does_not_hang_the_forecast(
    make_prompts: Callable[[int], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = threading.Event()
    monkeypatch.setattr("stairdata.llm.tokens.FETCH_SECONDS", 0.01)
    monkeypatch.setattr("tiktoken.encoding_for_model", lambda _: silence.wait(60))
    assert "TimeoutError" in forecast("gpt-4o", make_prompts(2))
    silence.set()


def test_a_forecast_for_a_model_that_nobody_knows(
    make_prompts: Callable[[int], Artifact], tokenizer_folder: Path
) -> None:
    prompts = make_prompts(2)
    assert "tiktoken does not know 'mine'" in forecast("mine", prompts)
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "other"}
    said = forecast("mine", prompts, judge=judge)
    assert "judge other, asked live; all ASSUMED" in said
    assert "the recipe's prices have no 'other'" in said


# -- a real model --------------------------------------------------------------------------------------------

WANTED = 8


@pytest.mark.slow
@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_smollm2_with_structured_outputs_makes_rows(tmp_path: Path) -> None:
    """vLLM holds a model of 135 million parameters to the schema; most answers fail the gate, so it may try again."""
    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    from stairdata.pipeline.quickstart import DATA
    from stairdata_training.smollm2 import prepare_smollm2

    model = prepare_smollm2(tmp_path / "base")
    sources = [{"path": str(DATA / name)} for name in ("prompts.jsonl", "structured_cot.jsonl")]
    teacher = {"path": str(model), "max_tokens": 300, "temperature": 1.0}
    recipe = Recipe.model_validate({"prompts": {"sources": sources}, "structured_cot": {"teacher": teacher}})
    options = BuildOptions(root=tmp_path / "artifacts", limit=40, max_quarantine=1.0)
    build_prompts(recipe, options)
    artifact = built(build_structured_cot(recipe, options))
    while artifact.manifest.rows < WANTED and int(artifact.manifest.version.split(".")[1]) < 5:
        artifact = built(build_structured_cot(recipe, options, TeacherOptions(retry_quarantined=True)))
    rows = artifact.scan().collect().to_dicts()
    assert len(rows) >= WANTED
    assert all(grammar.parse(row["completion"]).output == row["output"] for row in rows)
    assert {row["task"] for row in rows} == {"safety", "helpfulness"}


def test_a_forecast_of_a_retry_counts_what_is_asked_again(
    teach: Teach, make_prompts: Callable[[int], Artifact], stub_llm: StubServer
) -> None:
    stub_llm.control(script=[{"status": 400}, {"status": 400}])
    built(teach(5, section={"concurrency": 1}))
    prompts = make_prompts(5)
    teacher = {"base_url": stub_llm.base_url, "model": "actor", "retries": 2}
    recipe = Recipe.model_validate({"structured_cot": {"teacher": teacher, "concurrency": 1}})
    options = BuildOptions(root=prompts.folder.parent.parent, inputs=(str(prompts.folder),))
    assert (
        forecast_structured_cot(recipe, options)
        .shown(json_=False)
        .startswith("structured_cot@1.0.0 is finished; there is nothing left")
    )
    anew = dataclasses.replace(options, fresh=True)
    assert forecast_structured_cot(recipe, anew).shown(json_=False).startswith("structured_cot: 5 prompts\n")
    again = forecast_structured_cot(recipe, options, TeacherOptions(retry_quarantined=True))
    assert again.words.startswith("structured_cot: 2 prompts")
    assert [(load.role, load.requests) for load in again.models] == [("teacher", 2)]


def test_a_forecast_leaves_out_what_an_unfinished_build_has(
    teach: Teach, make_prompts: Callable[[int], Artifact], stub_llm: StubServer, tmp_path: Path
) -> None:
    """Two rows are made at once, then three requests wait in a batch."""
    prompts = make_prompts(7)
    with pytest.raises(BudgetError):
        teach(7, section={"concurrency": 1}, prompts=prompts, limits=BudgetLimits(total_tokens=5000))
    rows = len(list(read_journal(tmp_path / "artifacts/structured_cot/1.0.0/.build/rows.jsonl")))
    assert 0 < rows < 5
    teacher = {"base_url": stub_llm.base_url, "model": "actor", "retries": 2}
    recipe = Recipe.model_validate({"structured_cot": {"teacher": teacher}})
    options = BuildOptions(root=tmp_path / "artifacts", inputs=(str(prompts.folder),))
    said = forecast_structured_cot(recipe, options).shown(json_=False)
    assert said.startswith(
        f"structured_cot: {7 - rows} prompts left; structured_cot@1.0.0 is unfinished and has {rows} already\n"
    )
    assert re.search(rf"requests +{7 - rows}\n", said)
    stub_llm.control(batches={"ends": "in_progress"})
    with pytest.raises(BudgetError):
        teach(7, prompts=prompts, batch="submit", limits=BudgetLimits(total_tokens=11_000))
    under_way = sum(stub_llm.stats()["sent_in_batches"].values())
    assert 0 < under_way < 7 - rows
    said = forecast_structured_cot(recipe, options).shown(json_=False)
    assert f"; {under_way} requests are answered or in progress\n" in said
    assert re.search(rf"requests +{7 - rows - under_way}\n", said)


def test_two_teachers_of_one_model_go_by_their_names_in_the_recipe(teach: Teach, stub_llm: StubServer) -> None:
    one = {"base_url": stub_llm.base_url, "model": "actor", "temperature": 0.1}
    section = {"teachers": {"cold": one, "hot": one | {"temperature": 0.9}}, "judge": {}}
    artifact = built(teach(6, section=section, teachers=("cold", "hot")))
    for row in artifact.scan().collect().to_dicts():
        assert {row["teacher"], row["alternatives"][0]["teacher"]} == {"cold", "hot"}
    told = [(each["as"], each["name"]) for each in artifact.manifest.configuration["teachers"]]
    assert told == [("cold", "actor"), ("hot", "actor")]


@pytest.mark.parametrize("gate", [{"min_steps": 9, "max_steps": 2}, {"min_characters": 90, "max_characters": 80}])
def test_a_gate_that_nothing_could_pass_is_no_recipe(gate: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no answer could pass"):
        Recipe.model_validate({"structured_cot": {"gate": gate}})
