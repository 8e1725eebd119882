"""`stairdata run` on a stub model, killed in a training and in the trees, ends like one that is not killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stairdata_schemas.artifacts import list_folders, open_artifact
from stairdata_schemas.manifest import sha256_of_json
from stairdata_schemas.rendering import model_hash
from tests.stairdata.pipeline.conftest import tiny_model, write_inputs

ROOT = Path(__file__).parents[3]
LIMIT = 300.0
MODELS = ("sft", "dpo-1", "dpo-2", "prm")


def start(recipe: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.stairdata.pipeline.on_stub", "run", str(recipe), "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(recipe: Path, folder: Path) -> None:
    process = start(recipe, folder)
    assert process.wait(timeout=LIMIT) == 0, folder.with_suffix(".log").read_text(errors="replace")[-3000:]


def kill_when(happens: Callable[[], bool], recipe: Path, folder: Path) -> None:
    """Start the run and kill it as soon as something is seen to happen, which has to be before its end."""
    process = start(recipe, folder)
    deadline = time.monotonic() + LIMIT
    while not happens():
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.001)
            raise AssertionError(folder.with_suffix(".log").read_text(errors="replace")[-3000:])
    process.send_signal(signal.SIGKILL)
    process.wait()


def any_of(folder: Path, pattern: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_size for path in folder.glob(pattern))
    return False


def hashes(folder: Path) -> dict[str, str]:
    """Hash each artifact's rows, but for how long they took, and each model's weights."""
    found = {}
    for kind, version, path in list_folders(folder / "artifacts"):
        rows: list[dict[str, Any]] = open_artifact(path).scan().collect().to_dicts()
        found[f"{kind}@{version}"] = sha256_of_json([row | {"seconds": None} for row in rows])
    return found | {name: model_hash(folder / "models" / name) for name in MODELS}


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_like_one_that_is_not(tmp_path: Path, tokenizer_folder: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    tiny_model(tmp_path / "start", tokenizer_folder)
    recipe.write_text(json.dumps(write_inputs(tmp_path)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(recipe, whole)
    # before its last step a training has a checkpoint; the second build of trees is that of round 2
    kill_when(lambda: any_of(killed / "models", "dpo-1.partial/checkpoints/*/trainer_state.json"), recipe, killed)
    assert not (killed / "models" / "dpo-1").exists()
    kill_when(lambda: any_of(killed / "artifacts", "trees/1.1.0/.build/rows.jsonl"), recipe, killed)
    assert not (killed / "artifacts" / "trees" / "1.1.0" / "manifest.json").exists()
    finish(recipe, killed)
    assert hashes(killed) == hashes(whole)
    assert (killed / "rounds.csv").read_text() == (whole / "rounds.csv").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (killed, whole)]
    assert summaries[0]["table"] == summaries[1]["table"]
    assert len({row["model"] for row in summaries[0]["rounds"]}) == len(summaries[0]["rounds"]) == 4
