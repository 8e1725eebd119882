"""Benchmarks: made-up rows in the layouts of the published files, and what is said of files in other layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stairdata.generators.evaluations.benchmarks import BenchmarkPrompt, load_benchmarks, pin_benchmarks
from stairdata.generators.evaluations.benchmarks.known import KNOWN_BENCHMARKS
from stairdata.recipe import BenchmarkSection
from stairdata_schemas.errors import InputError, RecipeError
from stairdata_schemas.identity import prompt_id
from stairdata_schemas.quarantine import QuarantineRow
from tests.stairdata.generators.prompts.hub_datasets import jsonl, put

if TYPE_CHECKING:
    from tests.conftest import HubServer

LAYOUTS: dict[str, tuple[str, str]] = {
    "strongreject": (
        "strongreject_small.csv",
        'category,source,forbidden_prompt\nMischief,custom,"How do I ring, then run?"\n',
    ),
    "xstest": (
        "xstest_prompts.csv",
        "id,prompt,type,label,focus,note\n1,How do I kill a weed?,homonyms,safe,kill,\n"
        "2,How do I kill a plan?,contrast_homonyms,unsafe,kill,\n",
    ),
    "do-not-answer": (
        "do_not_answer.jsonl",
        '{"question": "Tell me a secret.", "type": "safety", "category": "privacy", "source": "do-not-answer"}\n',
    ),
    "harmbench": (
        "harmbench_behaviors_text_all.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Do some mischief,standard,general,,,a\nContinue the story,contextual,general,context,Once upon a time,b\n",
    ),
    "alpaca_eval": (
        "alpaca_eval.json",
        '[{"dataset": "koala", "instruction": "Name a river.", "output": "The Nile.", "generator": "reference"}]',
    ),
    "gsm8k": (
        "gsm8k_test.jsonl",
        '{"question": "How many eggs?", "answer": "A thousand and two.\\n#### 1,002"}\n',
    ),
    "simpleqa": (
        "simple_qa_test_set.csv",
        "metadata,problem,answer\n\"{'topic': 'Art'}\",Who painted it?,Somebody\n",
    ),
    "advglue": (
        "adv_qnli.jsonl",
        '{"question": "Who ran?", "sentence": "A dog rxan.", "label": 0, "idx": 3}\n',
    ),
}


def load(*sections: dict[str, Any], refused: list[QuarantineRow] | None = None) -> list[BenchmarkPrompt]:
    pinned = pin_benchmarks([BenchmarkSection.model_validate(section) for section in sections])
    return load_benchmarks(pinned, 42, [] if refused is None else refused)


def written(folder: Path, name: str) -> dict[str, Any]:
    file, text = LAYOUTS[name]
    (folder / file).write_text(text)
    return {"name": name, "path": folder / file}


def test_known_layouts(tmp_path: Path) -> None:
    sections = [written(tmp_path, name) for name in LAYOUTS]
    found = load(*sections)
    asked = "Does the sentence hold the answer to the question (entailment) or not (not_entailment)?\n"
    rows = [
        ("How do I ring, then run?", "strongreject", "safety", "Mischief", None, None),
        ("How do I kill a weed?", "xstest", "helpfulness", "homonyms", "safe", None),
        ("How do I kill a plan?", "xstest", "safety", "contrast_homonyms", "unsafe", None),
        ("Tell me a secret.", "do-not-answer", "safety", "privacy", None, None),
        ("Do some mischief", "harmbench", "safety", "general", None, None),
        ("Once upon a time\n\n---\n\nContinue the story", "harmbench", "safety", "general", None, None),
        ("Name a river.", "alpaca_eval", "helpfulness", "koala", None, "The Nile."),
        ("How many eggs?", "gsm8k", "helpfulness", None, None, "1002"),
        ("Who painted it?", "simpleqa", "helpfulness", None, None, "Somebody"),
        (
            f"{asked}Question: Who ran?\nSentence: A dog rxan.\nAnswer with one of: entailment, not_entailment.",
            "advglue",
            "helpfulness",
            "qnli",
            "entailment",
            None,
        ),
    ]
    assert found == [BenchmarkPrompt(prompt_id(row[0]), *row) for row in rows]  # type: ignore[arg-type]
    assert [prompt.benchmark for prompt in found if prompt.is_harmful] == [
        "strongreject", "xstest", "do-not-answer", "harmbench", "harmbench",
    ]  # fmt: skip
    scores = {pinned.name: pinned.score for pinned in pin_benchmarks([BenchmarkSection(**each) for each in sections])}
    assert scores == {name: KNOWN_BENCHMARKS[name].score for name in LAYOUTS}


def test_toxic_first_turns_of_wildchat(tmp_path: Path) -> None:
    def turn(content: str, role: str, *, toxic: bool) -> dict[str, Any]:
        return {"content": content, "role": role, "toxic": toxic}

    rows = [
        {"toxic": True, "language": "English", "conversation": [turn("Rude.", "user", toxic=True)]},
        {"toxic": True, "language": "English", "conversation": [turn("Kind.", "user", toxic=False)]},
        {"toxic": False, "language": "English", "conversation": [turn("Hello.", "user", toxic=False)]},
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "wildchat.parquet")
    refused: list[QuarantineRow] = []
    found = load({"name": "wildchat-toxic", "path": tmp_path / "wildchat.parquet"}, refused=refused)
    assert [prompt.prompt for prompt in found] == ["Rude."]
    assert [row.rule for row in refused] == ["missing_value"]  # toxic only in a later turn


def test_own_file_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"q": {"text": f"Question {number}?"}, "group": number % 2} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"q": {"text": " "}}, rows[0], {"q": {}}]))
    section = {"name": "mine", "path": path, "columns": {"prompt": "q.text", "category": "group"}, "task": "safety"}
    refused: list[QuarantineRow] = []
    found = load(section, refused=refused)
    assert len(found) == 40
    assert found[1][2:] == ("mine", "safety", "1", None, None)
    assert [row.rule for row in refused] == ["blank", "duplicate_prompt", "missing_value"]
    few = load(section | {"limit": 20, "count": 5})
    assert len(few) == 5
    assert {prompt.prompt for prompt in few} <= {f"Question {number}?" for number in range(20)}
    assert [prompt.prompt for prompt in few] == sorted((p.prompt for p in few), key=lambda text: int(text[9:-1]))
    assert [prompt.category for prompt in load(section | {"where": {"group": 1}})] == ["1"] * 20


def test_a_copy_with_other_columns_is_read_as_the_benchmark_it_is_like(tmp_path: Path) -> None:
    path = tmp_path / "xstest_de.csv"
    path.write_text("frage,art\nWie lösche ich eine Datei?,safe\nWie?,odd\n")
    section = {"name": "xstest-de", "like": "xstest", "path": path, "columns": {"prompt": "frage", "label": "art"}}
    refused: list[QuarantineRow] = []
    (found,) = load(section, refused=refused)
    assert (found.benchmark, found.task, found.label) == ("xstest-de", "helpfulness", "safe")
    assert [(row.rule, row.field) for row in refused] == [("missing_value", "label")]


@pytest.mark.parametrize(
    ("section", "text", "message"),
    [
        ({"name": "strongreject"}, "a,b\n1,2\n", "has no column 'prompt' or 'forbidden_prompt', which the benchmark"),
        ({"name": "xstest"}, "prompt,type\nx,y\n", "has no column 'label'"),
        (
            {"name": "gsm8k"},
            "question,solution\nx,y\n",
            "(its columns: question, solution); name the column that holds it",
        ),
        ({"name": "me", "columns": {"prompt": "q"}}, "question\nx\n", "has no column 'q'"),
        ({"name": "me", "columns": {"prompt": "q"}, "score": "winrate"}, "q\nx\n", "has no column 'reference_answer'"),
        ({"name": "me", "columns": {"prompt": "q"}, "where": {"lang": "en"}}, "q\nx\n", "has no column 'lang'"),
        ({"name": "me", "columns": {"prompt": "q"}, "where": {"q": "y"}}, "q\nx\n", "gave no prompt where"),
        ({"name": "do-not-answer"}, "question\n", "gave no prompt"),
    ],
)
def test_a_file_without_what_is_needed(tmp_path: Path, section: dict[str, Any], text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        load(section | {"path": path})
    assert message in str(raised.value)
    assert "rows.csv" in str(raised.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([{"name": "xtest", "path": "x.csv"}], "did you mean 'xstest'"),
        ([{"name": "x", "like": "gsm", "path": "x.csv"}], "like: 'gsm' is not a benchmark"),
        ([{"name": "gsm8k", "path": "x"}, {"name": "gsm8k"}], "two benchmarks are called 'gsm8k'"),
        ([{"name": "gsm8k", "path": "x", "hub": "a/b"}], "has a path and a hub"),
        ([{"name": "alpaca_eval"}], "is read from a file (alpaca_eval.json of"),
        ([{"name": "harmbench"}], "give `revision:`"),
    ],
)
def test_a_section_that_says_too_little_or_too_much(sections: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load(*sections)
    assert message in str(raised.value)


def test_a_file_that_is_away() -> None:
    with pytest.raises(InputError, match=r"away\.csv does not exist"):
        load({"name": "xstest", "path": "away.csv"})


def test_a_known_benchmark_from_the_hub_at_its_commit(hub: HubServer) -> None:
    known = KNOWN_BENCHMARKS["do-not-answer"]
    assert known.hub is not None
    put(hub, known.hub, {"data/train.jsonl": jsonl([{"question": "A?", "risk_area": "r"}])}, known.revision)
    (pinned,) = pin_benchmarks([BenchmarkSection(name="do-not-answer")])
    assert pinned.described["revision"] == known.revision
    assert pinned.source.source.license == "cc-by-nc-sa-4.0"
    assert [prompt.prompt for prompt in load_benchmarks([pinned], 1, [])] == ["A?"]


def test_what_decides_the_prompts_is_in_the_fingerprint(tmp_path: Path) -> None:
    section = written(tmp_path, "xstest")

    def described(**changes: Any) -> dict[str, Any]:
        (pinned,) = pin_benchmarks([BenchmarkSection(**section | changes)])
        return pinned.described

    before = described()
    assert before["file"] == "xstest_prompts.csv"
    assert str(tmp_path) not in json.dumps(before)
    assert before != described(limit=1)
    assert before != described(where={"label": "safe"})
    assert before == described(license="mit")
    section["path"].write_text(LAYOUTS["xstest"][1] + "3,More?,homonyms,safe,,\n")
    assert before != described()
