"""The benchmarks run: in small here, at the sizes of docs/performance.md by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from stairdata.llm.vllm_server import vllm_missing
from stairdata_review.server.environment import ensure_environment
from stairdata_schemas.artifacts import open_artifact
from stairdata_schemas.errors import ReviewError

if TYPE_CHECKING:
    from tests.conftest import StubServer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1"}
"""Of vLLM: two that wait for each other crawl in CI."""
GROWN = ["--trees", "4", "--iterations", "4", "--steady", "2", "--saturate", "4"]

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str, folder: Path, timeout: float = 500, **environment: str) -> str:
    """Run a benchmark, and return what it printed."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def figure(output: str, pattern: str) -> float:
    """Return the number that a line of the output ends in."""
    found = re.search(pattern + r" ([\d.]+(?:e-?\d+)?)", output)
    assert found, output
    return float(found[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trees.py", "instant", "--trees", "3", "--iterations", "6"], "ms of CPU a completion"),
        (["trees.py", "memory", "--trees", "3", "--iterations", "6"], "peak memory"),
        (["pairs.py", "--small", "4", "--large", "20"], "export of the import is the file that was imported"),
        (["teacher.py", "--prompts", "60"], "stairdata: 60 rows"),
        (["teacher.py", "--prompts", "600", "--kill"], "; then run again"),
        (["prompts.py", "--prompts", "300", "--stream", "1000", "--count", "50"], "50 out of 1,000"),
        (
            ["endpoints.py", "--kinds", "evaluations", "--units", "24", "--repeats", "1", "--pass-ms", "2"],
            "evaluations: share of the rate alone",
        ),
        (["paper_costs.py", "--prompts", "60", "--iterations", "8"], "together"),
        (["paper_scale.py", "--prompts", "12"], "\npull "),
        (["hub.py", "--gigabytes", "0.004"], "lfs pull:"),
        (["hub.py", "--gigabytes", "0.004", "--lane", "xet", "--repeats", "2"], "medians of 2:\nxet bare push:"),
        (["secret_scan.py", "texts.jsonl", "--megabytes", "1"], "2 different texts, 0.00 MB, taken for secrets: 1"),
    ],
    ids=[
        "instant",
        "memory",
        "pairs",
        "teacher",
        "teacher-killed",
        "prompts",
        "endpoints",
        "paper-costs",
        "paper-scale",
        "hub-lfs",
        "hub-xet",
        "secret-scan",
    ],
)
def test_a_benchmark_runs(arguments: list[str], words: str, tmp_path: Path) -> None:
    script, *rest = arguments
    (tmp_path / "texts.jsonl").write_text(json.dumps({"a": "plain words", "b": ["hf_" + "aB3" * 12]}) + "\n")
    assert words in run(script, *rest, folder=tmp_path)


def test_training_is_measured_beside_bare_trl(tmp_path: Path) -> None:
    output = run("training.py", "throughput", "--steps", "2", "--repeats", "1", "--batch-size", "2", folder=tmp_path)
    for method in ("sft", "dpo", "prm"):
        assert figure(output, f"{method} ratio") > 0
    losses = re.findall(r"last losses ([\d.]+) and ([\d.]+)", output)  # both sides train on the same, to the same
    assert len(losses) == 3
    assert all(float(ours) == pytest.approx(float(bare), abs=1e-3) for ours, bare in losses)


def test_padding_and_tokenising_are_measured(tmp_path: Path) -> None:
    output = run("training.py", "padding", "--max-rows", "300", folder=tmp_path)
    assert figure(output, "padding of the reference pass:") <= 6 < figure(output, "in the order of the artifact:")
    output = run("training.py", "tokenise", "--rows", "100", folder=tmp_path)
    assert figure(output, "100 pairs tokenised on one core:") > 0


@pytest.fixture(scope="module")
def instant_url() -> Iterator[str]:
    """Where the server that answers at once is."""
    command = [sys.executable, str(BENCHMARKS / "instant_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.kill()


@pytest.mark.parametrize(
    "options",
    [
        ["--again", "0.5"],
        ["--unfused", "--judge", "self", "--unreadable-as-3", "--window", "4", "--at-once", "2", "--top-p", "1"],
        ["--judge", "reference", "--prompts", "ours.jsonl", "published.jsonl"],
    ],
    ids=["fused", "unfused", "prompts"],
)
def test_trees_on_a_server_are_measured_beside_the_same_requests(
    options: list[str], instant_url: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    for name, prompt, task in (("ours", "prompt", "task"), ("published", "question", "type")):
        rows = [{prompt: f"How is {name} {number}?", task: "helpfulness"} for number in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = ["--base-url", instant_url, "--tokenizer", str(tokenizer_folder)]
    output = run("trees.py", "server", *server, *GROWN, *options, folder=tmp_path)
    assert "4 trees x 4 iterations" in output
    assert figure(output, "share of the saturated throughput:") > 0


def test_trees_on_a_server_without_a_second_run(instant_url: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    server = ["--base-url", instant_url, "--tokenizer", str(tokenizer_folder)]
    output = run("trees.py", "server", *server, *GROWN, "--saturate", "0", folder=tmp_path)
    assert "4 trees x 4 iterations" in output
    assert "share" not in output


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2, where vLLM can serve it."""
    missing = vllm_missing()
    if missing:
        pytest.skip(missing)
    from stairdata_training.smollm2 import prepare_smollm2

    return prepare_smollm2(tmp_path_factory.mktemp("smollm2") / "base")


@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_trees_on_a_model_are_measured_beside_the_same_requests(real_model: Path, tmp_path: Path) -> None:
    """Two servers of vLLM, one after the other; a model of this size gives no rating that can be read."""
    grown = ["--trees", "2", "--iterations", "1", "--steady", "2", "--saturate", "4", "--max-tokens", "16"]
    judge = ["--judge", "self", "--judge-tokens", "4", "--unreadable-as-3"]
    server = ["--model", str(real_model), "--server-args", "--seed 1", "--log", "server.log"]
    output = run("trees.py", "server", *server, *grown, *judge, folder=tmp_path, timeout=3000, **ONE_THREAD)
    assert "2 trees x 1 iterations" in output
    assert figure(output, "share of the saturated throughput:") > 0
    assert (tmp_path / "server.log").stat().st_size > 0


@pytest.mark.all_cores
@pytest.mark.timeout(3600)
def test_a_model_that_judges_its_own_answers_is_measured_beside_the_same_requests(
    real_model: Path, tmp_path: Path
) -> None:
    asked = ["--kinds", "evaluations", "--units", "4", "--repeats", "1", "--again", "1", "--log", "server.log"]
    output = run("endpoints.py", "--model", str(real_model), *asked, folder=tmp_path, timeout=3000, **ONE_THREAD)
    assert figure(output, "evaluations: share of the rate alone, median of 1:") > 0


def test_the_review_server_is_measured(tmp_path: Path) -> None:
    try:
        ensure_environment()
    except ReviewError as error:
        pytest.skip(f"Argilla's server can't be installed here: {error}")
    output = run("review.py", "--records", "300", "--reviewers", "3", "--repeats", "1", folder=tmp_path)
    assert figure(output, "no filter +") == 300
    assert "progress of a reviewer" in output


def test_teachers_are_measured_beside_distilabel(tmp_path: Path) -> None:
    python = os.environ.get("DISTILABEL_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import distilabel.models"], capture_output=True, check=False).returncode:
        pytest.skip(
            f"{python} has no distilabel; get it with `python -m venv DIR && DIR/bin/pip install "
            "'distilabel[openai]==1.5.3' requests`, and set DISTILABEL_PYTHON=DIR/bin/python"
        )
    output = run("teacher.py", "--prompts", "20", "--paired", "20", "--distilabel", python, folder=tmp_path)
    assert figure(output, "20 rows: stairdata [0-9]+ rows/s, distilabel") > 0


def test_intervals_hold_the_true_mean_in_95_of_100_studies(tmp_path: Path) -> None:
    """A coverage of 0.95 has a standard error of 0.007 in 1,000 studies."""
    output = run("score_statistics.py", "coverage", "--resamples", "1000", folder=tmp_path)
    found = [float(each) for each in re.findall(r"studentized ([\d.]+)", output)]
    assert len(found) == 6
    assert all(0.93 <= each <= 0.97 for each in found), output
    assert figure(output, "p 0.05, 50 prompts: studentized [0-9.]+, plain percentile") < 0.93


def test_statistics_of_ten_thousand_rows_take_seconds(tmp_path: Path) -> None:
    output = run("score_statistics.py", "time", folder=tmp_path)
    assert figure(output, "all statistics of 10,000 rows, 500 prompts:") < 5


FAST = ["--speed", '{"pass_ms": 4, "sequence_ms": 0.02}', "--repeats", "1"]
SEARCHED = ["--prompts", "10", "--in-flight", "6", "--steady", "3", "--window", "12", *FAST]


def test_searches_in_flight_are_measured_beside_the_same_requests(tmp_path: Path) -> None:
    output = run("search.py", "flight", *SEARCHED, "--prm-seconds", "8", "--texts", "8", folder=tmp_path)
    assert "10 answers in" in output
    assert figure(output, r"share of the saturated rate, median of 1:") > 0
    assert 0 < figure(output, r"the reward model \d+\.\d texts of") < 1000
    assert 0 < figure(output, r"share of the time that the reward model takes:") <= 1


def test_searches_one_at_a_time_are_measured_beside_many(tmp_path: Path) -> None:
    output = run("search.py", "one-at-a-time", *SEARCHED, "--alone", "1", folder=tmp_path)
    assert figure(output, r"answers an hour against one prompt at a time, median of 1:") > 0
    assert figure(output, r"share of what the server's rates allow:") > 0


def test_one_pass_an_answer_is_measured_beside_one_a_prefix(tmp_path: Path) -> None:
    output = run("search.py", "prefixes", "--prefixes", "40", "--repeats", "1", folder=tmp_path)
    tokens, times = figure(output, "ratio of the tokens:"), figure(output, "of CPU times")
    assert 1.8 < tokens < 3
    assert 1 < times < 2 * tokens
    assert float(re.findall(r"scores differ by (\S+)", output)[0]) < 1e-5


def test_safety_is_measured_and_a_second_run_asks_nothing(stub_llm: StubServer, tmp_path: Path) -> None:
    """Two models in small, one of which searches; figures are those of the rows."""
    script = "from pathlib import Path; from search import small_reward_model; small_reward_model(Path('prm'))"
    paths = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=paths)
    for name in ("do_not_answer", "self_instruct_seed"):
        lines = [json.dumps({"question": f"{name}: how is number {number} done?"}) + "\n" for number in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    rows = [f"May I end process {number}?,homonyms,{('safe', 'unsafe')[number % 2]}\n" for number in range(10)]
    (tmp_path / "xstest_prompts.csv").write_text("prompt,type,label\n" + "".join(rows))
    stub_llm.control(model="sft", also=["dpo"], tokenizer=str(tmp_path / "prm"), faults={"cut": 0.2})
    command = ["--models", "sft=prm,dpo=prm", "--prm", "prm", "--data", ".", "--folder", "out", "--share", "0.02"]
    command += ["--base-url", stub_llm.base_url]
    output = run("safety.py", "run", *command, folder=tmp_path)
    asked = stub_llm.stats()["requests"]
    assert asked > 0
    tables = json.loads((tmp_path / "out" / "table.json").read_text())
    assert run("safety.py", "run", *command, folder=tmp_path).count(": finished") == 4
    assert stub_llm.stats()["requests"] == asked
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == tables
    once, searched = tables["One answer to each prompt"], tables["Search at test time"]
    artifact = open_artifact(tmp_path / "out" / "artifacts" / "evaluations" / "1.0.0")
    frame = artifact.scan().filter(pl.col("benchmark") == "do-not-answer", pl.col("attack") == "none").collect()
    figure = next(each for each in once["figures"] if (each["figure"], each["model"]) == ("harmful", "sft"))
    assert figure["answers"] == len(frame) == 6
    assert figure["unread"] == frame["refused"].null_count()
    assert figure["refused"]["mean"] == pytest.approx(frame["refused"].mean())
    assert {each["model"] for each in searched["figures"]} == {"dpo, beam", *(f"dpo, best of {k}" for k in (1, 2, 4))}
    p_values = [(each["holm_p"], each["paired"]["p_value"]) for each in once["comparisons"] if each["paired"]]
    assert p_values
    assert all(adjusted >= p for adjusted, p in p_values)
    assert "| harmful, under prefill | dpo |" in output


def test_judging_is_measured_beside_the_same_requests(tmp_path: Path) -> None:
    small = ["--answers", "96", "--repeats", "1", "--window", "16", "--steady", "16"]
    server = ["--speed", '{"pass_ms": 5, "tokens": 16, "places": 16}']
    output = run("judging.py", *small, *server, folder=tmp_path)
    assert "96 judgements in " in output
    assert 0 < figure(output, "share of the saturated rate, median of 1:") < 1.5
