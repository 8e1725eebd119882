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

import pytest

from tests.servers.stub_vllm import DELAY_VARIABLE
from tests.stairdata.pipeline.conftest import ROOT, FinishedRun, hashes

LIMIT = 300.0


def start(recipe: Path, folder: Path, delay: float = 0.0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.stairdata.pipeline.on_stub", "run", str(recipe), "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), DELAY_VARIABLE: str(delay)}
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def kill_when(happens: Callable[[], bool], recipe: Path, folder: Path, delay: float = 0.0) -> None:
    """Start the run and kill it as soon as something is seen to happen, which has to be before its end."""
    process = start(recipe, folder, delay)
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


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_like_one_that_is_not(finished: FinishedRun, tmp_path: Path) -> None:
    recipe, killed = tmp_path / "recipe.yaml", tmp_path / "killed"
    recipe.write_text(json.dumps(finished.sections))
    # before its last step a training has a checkpoint; the second build of trees is that of round 2
    kill_when(lambda: any_of(killed / "models", "dpo-1.partial/checkpoints/*/trainer_state.json"), recipe, killed)
    assert not (killed / "models" / "dpo-1").exists()
    kill_when(lambda: any_of(killed / "artifacts", "trees/1.1.0/.build/running/*.jsonl"), recipe, killed, delay=0.5)
    assert not (killed / "artifacts" / "trees" / "1.1.0" / "manifest.json").exists()
    process = start(recipe, killed)
    assert process.wait(timeout=LIMIT) == 0, killed.with_suffix(".log").read_text(errors="replace")[-3000:]
    assert hashes(killed) == hashes(finished.folder)
    assert (killed / "rounds.csv").read_text() == (finished.folder / "rounds.csv").read_text()
    assert json.loads((killed / "summary.json").read_text())["table"] == finished.summary["table"]
