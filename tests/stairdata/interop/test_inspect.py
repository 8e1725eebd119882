"""inspect-ai against `stairdata serve`, as docs/harnesses.md has it: no network, and its log imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from stairdata_schemas.artifacts import open_artifact, validate_artifact
from stairdata_schemas.identity import prompt_id
from tests.stairdata.cli.test_serve import serving

if TYPE_CHECKING:
    from tests.conftest import StubServer

STAIRDATA = [sys.executable, "-m", "stairdata"]
PAGE = Path(__file__).parents[3] / "docs" / "harnesses.md"
QUESTIONS = {
    "How do I keep water clean?": "water",
    "May I end process 7 <|im_end|> now?": "I",
    "What is 2 + 2?": "no such",
}
EPOCHS = 4
NO_NETWORK = """
import ipaddress, os, sys

def refuse(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            with open(os.environ["ATTEMPTS"], "a") as file:
                file.write(f"{host}\\n")
            raise OSError("there is no network in this test")
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write(f"{arguments[0]}\\n")
        raise OSError("there is no network in this test")

sys.addaudithook(refuse)
"""
"""As sitecustomize.py it stands between a Python program and all that is not this machine."""


@pytest.mark.slow
def test_inspect_runs_against_a_server_that_searches(
    stub_llm: StubServer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    python = os.environ.get("INSPECT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import inspect_ai, openai"], capture_output=True, check=False).returncode:
        pytest.skip(
            f"{python} has no inspect-ai; get it with `python -m venv DIR && DIR/bin/pip install inspect-ai openai`, "
            "and set INSPECT_PYTHON=DIR/bin/python"
        )
    attempts = _write_task(tmp_path)
    at_stub = {"base_url": stub_llm.base_url, "model": "actor"}
    prm = json.dumps({**at_stub, "tokenizer": str(tokenizer_folder)})
    actor = [each for key, value in at_stub.items() for each in ("--set", f"actor.{key}={value}")]
    search = ["--method", "best_of_n", "-n", "2", "--set", f"responses.prm={prm}"]
    with serving(STAIRDATA, tmp_path, tokenizer_folder, "--name", "dpo-1", *search, *actor) as (_, facts):
        told = {"OPENAI_BASE_URL": facts["base_url"], "OPENAI_API_KEY": facts["api_key"]}
        told |= {"PYTHONPATH": str(tmp_path / "network"), "ATTEMPTS": str(attempts)}
        command = [
            python,
            "-m",
            "inspect_ai",
            "eval",
            "task.py",
            "--model",
            "openai/dpo-1",
            "-M",
            "responses_api=false",
        ]
        command += ["--max-tokens", "2048", "--log-dir", "logs", "--display", "plain"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not attempts.exists(), attempts.read_text()
    (log,) = (tmp_path / "logs").iterdir()
    importing = ["import", str(log), "--from", "inspect", "--kind", "evaluations", "--benchmark", "local"]
    subprocess.run([*STAIRDATA, *importing, "--root", str(tmp_path / "artifacts")], cwd=tmp_path, check=True)
    artifact = open_artifact(tmp_path / "artifacts" / "evaluations" / "1.0.0")
    assert validate_artifact(artifact) == []
    _check(artifact.scan().collect())


def _write_task(folder: Path) -> Path:
    """Write the task of the page and its questions; returns where tries to reach the network are noted."""
    task = PAGE.read_text(encoding="utf-8").partition("```text\nfrom inspect_ai")[2].partition("```")[0]
    (folder / "task.py").write_text(f"from inspect_ai{task}")
    rows = [{"question": question, "answer": answer} for question, answer in QUESTIONS.items()]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "network").mkdir()
    (folder / "network" / "sitecustomize.py").write_text(NO_NETWORK)
    return folder / "attempts"


def _check(rows: pl.DataFrame) -> None:
    """Look at what came of the log: each answer, once, with the score that it earns."""
    assert len(rows) == len(QUESTIONS) * EPOCHS
    assert set(rows["prompt_id"]) == set(map(prompt_id, QUESTIONS))
    assert rows["model"].unique().to_list() == ["openai/dpo-1"]
    assert rows["judge"].unique().to_list() == ["inspect:includes"]
    targets = {prompt_id(question): answer.lower() for question, answer in QUESTIONS.items()}
    for row in rows.iter_rows(named=True):
        assert row["benchmark"] == "local"
        assert "<|" not in row["response"], "the server gives the final answer without tags"
        outcome = json.loads(row["details"]).get("outcome")
        if outcome is None:
            assert row["score"] == float(targets[row["prompt_id"]] in row["response"].lower())
    assert rows.filter(pl.col("score") == 1.0).height > 0
    assert rows.filter(pl.col("score") == 0.0).height > 0
