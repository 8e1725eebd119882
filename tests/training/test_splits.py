"""A step is the same however it is split: into forward passes, or over processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stairdata_training.data.batches import StepSampler, step_order
from stairdata_training.output import partial_folder

Rows = list[dict[str, Any]]


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=300),
    st.integers(1, 40),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_an_epoch_holds_each_row_once_in_steps_of_similar_length(
    lengths: list[int], rows_per_step: int, epoch: int, seed: int
) -> None:
    order = step_order(lengths, rows_per_step, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == step_order(lengths, rows_per_step, seed, epoch)
    for start in range(0, len(order), rows_per_step):
        step = [lengths[index] for index in order[start : start + rows_per_step]]
        assert step == sorted(step)


@given(st.integers(1, 100), st.integers(1, 8), st.integers(1, 6), st.integers(0, 3))
def test_steps_are_whole(rows: int, rows_per_pass: int, passes: int, epoch: int) -> None:
    rows_per_step = rows_per_pass * passes
    sampler = StepSampler([index * 37 % 50 for index in range(rows)], rows_per_step, rows_per_pass, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    unit = rows_per_step if rows > rows_per_step else rows_per_pass
    assert len(order) % unit == 0
    assert len(order) - rows < unit
    assert sampler.steps_per_epoch == -(-rows // rows_per_step)
    assert set(order) == set(range(rows))
    assert sorted(order[:rows]) == list(range(rows))


def test_rows_are_stored_in_the_order_of_the_first_epoch() -> None:
    sampler = StepSampler([3, 1, 2, 5, 4], 5, 5, seed=1)
    assert list(sampler) == [0, 1, 2, 3, 4]
    sampler.set_epoch(1)
    assert list(sampler) == [1, 2, 0, 4, 3]


def test_similar_lengths_share_a_step() -> None:
    lengths = [(index * 37) % 100 for index in range(103)]
    order = step_order(lengths, 8, seed=1, epoch=1)
    steps = [[lengths[index] for index in order[start : start + 8]] for start in range(0, 96, 8)]
    assert max(max(step) - min(step) for step in steps) <= 10
    assert step_order(lengths, 8, seed=1, epoch=0) != order


CHILD = """
import json, os, signal, sys
from pathlib import Path
from datasets import Dataset
from stairdata_training import config, dpo, prm, sft
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train

job = json.loads(Path(sys.argv[1]).read_text())
configs = {"sft": config.SftConfig, "dpo": config.DpoConfig, "prm": config.PrmConfig}
methods = {"sft": sft.SFT, "dpo": dpo.DPO, "prm": prm.PRM}

def on_progress(step, steps, logs):
    if step == job["stop"]:
        os.kill(os.getpid(), signal.SIGKILL)

plan = TrainingPlan(job["method"], Dataset.from_list(job["rows"]), job["model"], Path(job["output"]),
                    configs[job["method"]](**job["config"]))
train(plan, methods[job["method"]], on_progress)
"""


def begin(
    folder: Path, method: str, rows: Rows, model: Path, output: str, *, processes: int, stop: int = 0, **split: int
) -> subprocess.Popen[bytes]:
    """Start a training, whose first process kills itself after the step to stop at."""
    config = {
        "epochs": 2, "learning_rate": 3e-3, "max_length": 400, "precision": "fp32", "checkpoint_steps": 3,
        "gradient_checkpointing": False, "save_dtype": "float32", **split,
    }  # fmt: skip
    job = {
        "method": method, "rows": rows, "model": str(model), "output": str(folder / output), "config": config,
        "stop": stop,
    }  # fmt: skip
    (folder / "child.py").write_text(CHILD, encoding="utf-8")
    (folder / f"{output}.json").write_text(json.dumps(job), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(folder / "child.py")]
    with (folder / f"{output}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, str(folder / f"{output}.json")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def end(process: subprocess.Popen[bytes], folder: Path, output: str) -> dict[str, Any]:
    assert process.wait(timeout=300) == 0, (folder / f"{output}.log").read_text(errors="replace")[-4000:]
    record: dict[str, Any] = json.loads((folder / output / "training.json").read_text(encoding="utf-8"))
    return record


def losses(record: dict[str, Any]) -> list[float]:
    return [loss for _, loss in record["summary"]["losses"]]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "prm"])
def test_one_process_accumulation_and_two_processes_train_alike(
    method: str, starts: dict[str, dict[str, Path]], sft_rows: Rows, pair_rows: Rows, tmp_path: Path
) -> None:
    rows = (sft_rows if method == "sft" else pair_rows)[:15]  # so that a step is filled up
    model = starts[method]["chatml"]
    records = {
        output: end(begin(tmp_path, method, rows, model, output, processes=processes, **split), tmp_path, output)
        for output, processes, split in (
            ("whole", 1, {"batch_size": 4, "gradient_accumulation": 1}),
            ("accumulated", 1, {"batch_size": 2, "gradient_accumulation": 2}),
            ("distributed", 2, {"batch_size": 2, "gradient_accumulation": 1}),
        )
    }
    assert len(losses(records["whole"])) == 8
    for output in ("accumulated", "distributed"):
        assert losses(records[output]) == pytest.approx(losses(records["whole"]), abs=1e-5)
        assert records[output]["fingerprint"] == records["whole"]["fingerprint"]
        assert records[output]["summary"]["tokens"] == records["whole"]["summary"]["tokens"]


@pytest.mark.slow
def test_two_processes_that_were_killed_in_the_second_epoch_end_like_one_that_was_not(
    actors: dict[str, Path], pair_rows: Rows, tmp_path: Path
) -> None:
    def start(output: str, processes: int, stop: int = 0) -> subprocess.Popen[bytes]:
        split = {"batch_size": 4 // processes, "gradient_accumulation": 1}
        return begin(tmp_path, "dpo", pair_rows, actors["chatml"], output, processes=processes, stop=stop, **split)

    straight = end(start("straight", 2), tmp_path, "straight")
    assert start("killed", 2, stop=7).wait(timeout=300) != 0
    assert (partial_folder(tmp_path / "killed") / "checkpoints" / "checkpoint-6").is_dir()
    again = end(start("killed", 1), tmp_path, "killed")
    assert losses(again) == pytest.approx(losses(straight), abs=1e-5)
    assert again["config"]["processes"] == 1
