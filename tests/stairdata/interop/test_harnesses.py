"""Sample logs of other harnesses: a real one of inspect-ai, made-up samples of both, and files that are none."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stairdata.interop.harnesses.importing import HarnessNames, import_harness
from stairdata.runs.options import BuildOptions
from stairdata_schemas.artifacts import Artifact, validate_artifact
from stairdata_schemas.errors import InputError, UsageError
from stairdata_schemas.formats.limits import VARIABLE, TooLargeError
from stairdata_schemas.identity import prompt_id

REAL = Path(__file__).parent / "data" / "inspect.eval"
"""Written by inspect-ai 0.3.285 against the stub: three questions, two epochs, scorers `includes` and `match`."""
REAL_LM_EVAL = Path(__file__).parent / "data" / "actor" / "samples_local_questions_2026-11-29T08-36-22.114600.jsonl"
"""Written by lm-eval 0.4.13 against the stub: the same questions, one metric under two filters."""
NAMES = HarnessNames()


def imported(
    tmp_path: Path, harness: str, *paths: Path, names: HarnessNames = NAMES, max_quarantine: float = 0.9
) -> tuple[Artifact, pl.DataFrame]:
    options = BuildOptions(root=tmp_path / "artifacts", max_quarantine=max_quarantine)
    artifact = import_harness(harness, "evaluations", paths, options, names)
    assert validate_artifact(artifact) == []
    return artifact, artifact.scan().collect()


def inspect_log(path: Path, samples: Sequence[Any], task: str = "inspect_evals/probe", **arguments: str) -> Path:
    header = {"task": task, "model": "openai/actor", "eval_id": "e1", "task_args": arguments}
    if path.suffix == ".json":
        path.write_text(json.dumps({"version": 2, "status": "success", "eval": header, "samples": samples}))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"version": 2, "eval": header}))
        for number, sample in enumerate(samples):
            archive.writestr(f"samples/{number}_epoch_1.json", json.dumps(sample))
    return path


def sample(number: int, value: Any, **changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": f"Answer {number}."}
    return {
        "id": number,
        "epoch": 1,
        "input": f"Question {number}?",
        "target": "t",
        "messages": [{"role": "user", "content": f"Question {number}?"}, message],
        "output": {"choices": [{"message": message, "stop_reason": "stop"}]},
        "scores": {"judge": {"value": value}},
        "attachments": {},
    } | changes


def answered(content: Any, stop_reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "stop_reason": stop_reason}]}


def test_a_real_log_of_inspect(tmp_path: Path) -> None:
    artifact, rows = imported(tmp_path, "inspect", REAL)
    assert len(rows) == 12  # 3 questions, 2 epochs, 2 scorers
    assert rows["benchmark"].unique().to_list() == ["local_questions"]
    assert rows["model"].unique().to_list() == ["openai/actor"]
    assert set(rows["judge"]) == {"inspect:includes", "inspect:match"}
    assert rows["response_id"].n_unique() == 3
    assert set(rows["sample"]) == {0, 1}
    right = rows.filter(pl.col("score") == 1.0)
    assert set(right["prompt_id"]) == {prompt_id("Which plan has {braces} and <|im_end|> in it?")}
    assert set(right["response"]) == {"It says something about risk.\nScore: 2"}
    details = json.loads(right["details"][0])
    assert details["target"] == "risk"
    assert details["value"] == "C"
    assert artifact.manifest.quarantine == {}
    assert imported(tmp_path, "inspect", REAL)[0].reference == artifact.reference


@pytest.mark.parametrize("ending", ["eval", "json"])
def test_values_of_scorers(tmp_path: Path, ending: str) -> None:
    values = ["C", "P", "I", "N", True, 0.25, 7, "odd", float("nan"), {"a": float("nan")}]
    log = inspect_log(tmp_path / f"log.{ending}", [sample(number, value) for number, value in enumerate(values)])
    rows = imported(tmp_path, "inspect", log)[1]
    scores = {json.loads(row["details"])["sample_id"]: row["score"] for row in rows.iter_rows(named=True)}
    assert [scores[number] for number in range(10)] == [1.0, 0.5, 0.0, 0.0, 1.0, 0.25, None, None, None, None]
    assert json.loads(rows["details"][9])["value"] == {"a": "NaN"}
    assert json.loads(rows["details"][8])["outcome"] == "unread"


def test_cut_and_empty_answers_are_neither_right_nor_refused(tmp_path: Path) -> None:
    log = inspect_log(
        tmp_path / "xstest.eval",
        [
            sample(1, "I", output=answered("Well, I", "max_tokens")),
            sample(2, "I", output=answered(" ")),
            sample(3, "I"),
        ],
        "inspect_evals/xstest",
        subset="unsafe",
    )
    artifact, rows = imported(tmp_path, "inspect", log)
    assert rows["refused"].to_list() == [None, None, True]
    assert rows["score"].to_list() == [None, None, 1.0]
    assert artifact.manifest.details == {"cut_answers": 1, "empty_answers": 1}


@pytest.mark.parametrize(
    ("subset", "task", "scores"), [("safe", "helpfulness", [1, 0, 0]), ("unsafe", "safety", [0, 1, 1])]
)
def test_halves_of_xstest(tmp_path: Path, subset: str, task: str, scores: list[float]) -> None:
    samples = [sample(number, value) for number, value in enumerate("CPI")]
    rows = imported(tmp_path, "inspect", inspect_log(tmp_path / "x.eval", samples, "xstest", subset=subset))[1]
    assert rows["refused"].to_list() == [False, True, True]  # a partial refusal is one
    assert rows["score"].to_list() == scores
    assert rows["task"].unique().to_list() == [task]


def test_goodness_of_strongreject_falls_with_harm(tmp_path: Path) -> None:
    values = [
        {"refusal": 1, "convincingness": 5, "specificity": 5},
        {"refusal": 0, "convincingness": 5, "specificity": 5},
        {"refusal": 0, "convincingness": 2, "specificity": 4},
        {"refusal": 0, "convincingness": 9, "specificity": 4},
    ]
    log = inspect_log(tmp_path / "s.eval", [sample(number, value) for number, value in enumerate(values)])
    rows = imported(tmp_path, "inspect", log)[1]
    assert rows["score"].to_list() == [1.0, 0.0, 0.5, None]
    assert rows["refused"].to_list() == [True, False, False, None]


def test_what_solvers_made_of_a_prompt_and_names_of_the_command_line(tmp_path: Path) -> None:
    sent = [{"role": "system", "content": "s"}, {"role": "user", "content": "attachment://h1"}]
    changed = sample(1, 1.0, messages=sent, attachments={"h1": "Please: Question 1?"})
    chat = sample(2, 1.0, input=[{"role": "user", "content": [{"type": "text", "text": "Question 2?"}]}])
    log = inspect_log(tmp_path / "log.eval", [changed, chat])
    rows = imported(tmp_path, "inspect", log, names=HarnessNames("own", "dpo-1@1234abcd", "please", "safety"))[1]
    assert rows["prompt_id"].to_list() == [prompt_id("Question 1?"), prompt_id("Question 2?")]
    assert rows["attacked_prompt"].to_list() == ["Please: Question 1?", None]
    assert rows.select("benchmark", "model", "attack", "task").row(0) == ("own", "dpo-1@1234abcd", "please", "safety")


def test_reasoning_in_an_answer_was_read_by_the_scorer(tmp_path: Path) -> None:
    whole = "<|Reasoning_step|>\nTitle: T:\nb\n<|/Reasoning_step|>"
    log = inspect_log(tmp_path / "log.eval", [sample(1, 1.0, output=answered(whole)), sample(2, 1.0)])
    assert imported(tmp_path, "inspect", log)[1]["reads"].to_list() == ["whole", "answer"]


def test_samples_that_can_not_be_taken(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    broken: dict[str, Any] = {
        "sample_failed": sample(1, "C", error={"message": "time-out"}),
        "several_turns": sample(2, "C", input=turns),
        "no_user_turn": sample(3, "C", input=[]),
        "not_text": sample(4, "C", input=[{"role": "user", "content": [{"type": "image", "image": "x"}]}]),
        "no_scores": sample(5, "C", scores={}),
        "no_answer": sample(6, "C", output={}),
        "no_such_attachment": sample(7, "C", input="attachment://away"),
        "blank": sample(8, "C", input=" "),
        "not_unicode": sample(9, "C", output=answered("\ud800")),
        "not_an_object": 3,
        "wrong_type": sample(10, "C", epoch="1"),
    }
    log = inspect_log(tmp_path / "log.eval", [*broken.values(), sample(0, "C")])
    artifact, rows = imported(tmp_path, "inspect", log, max_quarantine=0.95)
    assert artifact.manifest.quarantine == dict.fromkeys(sorted(broken), 1)
    assert len(rows) == 1


def test_real_samples_of_lm_eval(tmp_path: Path) -> None:
    artifact, rows = imported(tmp_path, "lm-eval", REAL_LM_EVAL)
    assert len(rows) == 6  # 3 questions, 2 filters
    assert rows.select("benchmark", "model").unique().rows() == [("local_questions", "actor")]
    assert set(rows["judge"]) == {"lm-eval:exact_match,first-word", "lm-eval:exact_match,none"}
    assert rows["prompt_id"][0] == prompt_id("What is water?")
    assert rows["response"][0] == "It says something about dose.\nScore: 3"
    assert json.loads(rows["details"][0])["kept"] == ["dose"]
    assert artifact.manifest.quarantine == {}


def lm_eval_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "org__actor" / "samples_gsm8k_cot_2026-11-29T08-00-00.123456.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lm_eval_row(number: int, sent: Any, **changes: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": {"question": "q"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": sent, "arg_1": {"until": []}}},
        "resps": [[f"Answer {number}"]],
        "filtered_resps": ["4"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": 1.0,
    } | changes


def test_samples_of_lm_eval(tmp_path: Path) -> None:
    shots = [{"role": "user", "content": "One and one?"}, {"role": "assistant", "content": "2"}]
    chat = json.dumps([{"role": "system", "content": "s"}, *shots, {"role": "user", "content": "Two and two?"}])
    path = lm_eval_file(
        tmp_path,
        lm_eval_row(0, "Question: One?\nAnswer:"),
        lm_eval_row(0, "Question: One?\nAnswer:", filter="flexible-extract", exact_match=0.0),
        lm_eval_row(1, [chat]),
        lm_eval_row(2, "x", resps=[[[-1.5, False]]]),
        lm_eval_row(3, "x", metrics=[]),
        lm_eval_row(4, None),
    )
    artifact, rows = imported(tmp_path, "lm-eval", path)
    assert rows["benchmark"].unique().to_list() == ["gsm8k_cot"]
    assert rows["model"].unique().to_list() == ["org/actor"]
    assert rows["prompt_id"].to_list() == [prompt_id("Question: One?\nAnswer:")] * 2 + [prompt_id("Two and two?")]
    assert rows["judge"].to_list() == [
        "lm-eval:exact_match,strict-match",
        "lm-eval:exact_match,flexible-extract",
        "lm-eval:exact_match,strict-match",
    ]
    assert rows["score"].to_list() == [1.0, 0.0, 1.0]
    assert json.loads(rows["details"][0])["kept"] == ["4"]
    assert artifact.manifest.quarantine == {"no_scores": 1, "not_generated": 1, "wrong_type": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.eval", b"no zip", "can't be read as a zip archive"),
        ("x.json", b"{}", "has no `eval` with a task and a model"),
        ("x.json", b"{", "is not JSON"),
        ("x.json", b'{"eval": {"task": "t", "model": "m"}, "samples": []}', "holds no samples"),
        ("x.json", b"\xff", "can't be read"),
    ],
)
def test_files_that_are_no_log(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        imported(tmp_path, "inspect", tmp_path / name)
    assert not (tmp_path / "artifacts/evaluations/1.0.0").exists()


def test_archives_that_are_damaged_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cut.eval"
    data = bytearray(REAL.read_bytes())
    data[2200] ^= 0xFF  # inside of a packed sample
    path.write_bytes(data)
    with pytest.raises(InputError, match="can't be read"):
        imported(tmp_path, "inspect", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.json", "{}")
    with pytest.raises(InputError, match=r"has no header\.json"):
        imported(tmp_path, "inspect", path)
    monkeypatch.setenv(VARIABLE, "0.00003")  # 2 KB a part
    for log in (REAL, inspect_log(tmp_path / "large.eval", [sample(1, "C", store={"x": "0" * 100_000})])):
        with pytest.raises(TooLargeError):
            imported(tmp_path, "inspect", log)


def test_other_kinds_and_files_that_are_away(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--kind is evaluations"):
        import_harness("inspect", "trees", [REAL], BuildOptions(root=tmp_path), NAMES)
    with pytest.raises(InputError, match="does not exist"):
        imported(tmp_path, "lm-eval", tmp_path / "away.jsonl")
