"""Output folders: whole or not there, whatever kills the process, and runs that go on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stairdata_schemas.errors import BuildLockedError, TrainingError
from stairdata_schemas.manifest import sha256_of_json
from stairdata_training import output as outputs
from stairdata_training.config import SftConfig
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train
from stairdata_training.sft import SFT, train_sft

CONFIG = SftConfig(
    epochs=2,
    learning_rate=3e-3,
    batch_size=4,
    gradient_accumulation=1,
    max_length=400,
    checkpoint_steps=2,
    gradient_checkpointing=False,
)
Rows = list[dict[str, Any]]
F, G = ({"trainer": "sft/2", "settings": {"seed": seed}, "data": "d", "start_model": "m"} for seed in (1, 2))

# Trains, and at a given step says so and waits for a line that never comes: the test kills it there.
CHILD = """
import json, sys
from pathlib import Path
from datasets import Dataset
from stairdata_training.config import SftConfig
from stairdata_training.plan import TrainingPlan
from stairdata_training.running import train
from stairdata_training.sft import SFT, train_sft

job = json.load(sys.stdin)
def on_progress(step, total, metrics):
    if step == job["stop"]:
        sys.__stdout__.write("stopped\\n")
        sys.__stdout__.flush()
        open(job["fifo"]).read()
train_sft(Dataset.from_list(job["rows"]), job["model"], Path(job["output"]), SftConfig(**job["config"]),
          on_progress=on_progress)
"""


def kill_in_training(tmp_path: Path, rows: Rows, model: Path, output: Path, stop: int) -> None:
    import os

    fifo = tmp_path / f"fifo-{stop}"
    os.mkfifo(fifo)
    job = {
        "rows": rows,
        "model": str(model),
        "output": str(output),
        "config": CONFIG.model_dump(mode="json"),
        "stop": stop,
        "fifo": str(fifo),
    }
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(job))
        child.stdin.close()
        assert "stopped\n" in iter(child.stdout.readline, "")
        child.kill()


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(str(folder / "model.safetensors")))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_never_killed(
    models: dict[str, Path], sft_rows: Rows, tmp_path: Path
) -> None:
    import torch

    rows, model = Dataset.from_list(sft_rows), models["chatml"]
    output, whole = tmp_path / "killed", tmp_path / "whole"
    kill_in_training(tmp_path, sft_rows, model, output, stop=6)
    assert not output.exists()
    steps: list[int] = []
    resumed = train_sft(rows, model, output, CONFIG, on_progress=lambda step, *_: steps.append(step))
    assert steps == [5, 6, 7, 8]  # the newest checkpoint is that of step 4; step 6 was killed before its own
    straight = train_sft(rows, model, whole, CONFIG)
    assert resumed.losses == straight.losses
    assert resumed.tokens == straight.tokens
    ours, theirs = weights(output), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.slow
def test_unfinished_work_of_other_settings_is_kept(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    output, steps = tmp_path / "out", []
    kill_in_training(tmp_path, sft_rows, models["llama3"], output, stop=4)
    checkpoint = outputs.partial_folder(output) / "checkpoints" / "checkpoint-2"
    other = CONFIG.model_copy(update={"seed": CONFIG.seed + 1})
    rows = Dataset.from_list(sft_rows)
    with pytest.raises(TrainingError, match=r"unfinished work of another training: seed is '42' there and '43' here"):
        train_sft(rows, models["llama3"], output, other)
    assert checkpoint.is_dir()
    plan = TrainingPlan("sft", rows, models["llama3"], output, other, fresh=True)
    train(plan, SFT, lambda step, *_: steps.append(step))
    assert steps[0] == 1


@pytest.mark.slow
def test_a_finished_output_is_returned_as_it_is(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    rows, output = Dataset.from_list(sft_rows), tmp_path / "out"
    first = train_sft(rows, models["chatml"], output, CONFIG.model_copy(update={"max_steps": 2}))
    before = (output / "model.safetensors").stat().st_mtime_ns

    def never(*_: object) -> None:
        raise AssertionError("it was trained again")

    again = train_sft(rows, models["chatml"], output, CONFIG.model_copy(update={"max_steps": 2}), on_progress=never)
    assert again == first
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    other = CONFIG.model_copy(update={"max_steps": 3})
    with pytest.raises(TrainingError, match=r"out holds a model of another training: max_steps is '2' there and '3'"):
        train_sft(rows, models["chatml"], output, other)
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    changed = train(TrainingPlan("sft", rows, models["chatml"], output, other, fresh=True), SFT)
    assert changed.steps == 3
    assert json.loads((output / "training.json").read_text(encoding="utf-8"))["summary"]["steps"] == 3
    assert not output.with_name("out.old").exists()


def test_a_run_killed_before_its_last_rename_is_not_trained_again(
    models: dict[str, Path], sft_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output = Dataset.from_list(sft_rows), tmp_path / "out"
    steps: list[int] = []

    def attempt() -> outputs.TrainingSummary:
        config = CONFIG.model_copy(update={"max_steps": 2})
        return train_sft(rows, models["chatml"], output, config, on_progress=lambda step, *_: steps.append(step))

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            attempt()
    assert not output.exists()
    assert attempt().steps == 2
    assert steps == [1, 2]
    assert (output / "model.safetensors").is_file()


def test_a_folder_of_somebody_else_is_left_alone(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(TrainingError, match="no training wrote it"):
        train_sft(Dataset.from_list(sft_rows), models["chatml"], tmp_path, CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "chapter 1"


def test_two_trainings_into_one_folder(models: dict[str, Path], sft_rows: Rows, tmp_path: Path) -> None:
    with outputs.locked(tmp_path / "out"), pytest.raises(BuildLockedError, match="another process"):
        train_sft(Dataset.from_list(sft_rows), models["chatml"], tmp_path / "out", CONFIG)


def test_a_checkpoint_cut_by_a_kill_is_not_used(tmp_path: Path) -> None:
    whole, cut = (tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (2, 4))
    for folder in (whole, cut):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    (whole / "trainer_state.json").write_text('{"global_step": 2}')
    (cut / "trainer_state.json").write_text('{"global_st')
    assert outputs.last_checkpoint(tmp_path) == whole
    assert not cut.exists()
    shutil.rmtree(whole)
    assert outputs.last_checkpoint(tmp_path) is None


def summary_of(output: Path) -> outputs.TrainingSummary:
    return outputs.TrainingSummary(output, "sft", 1, 10, 1, 0.5, 2.0, 1.0, ((1, 2.0),))


def test_a_kill_between_the_last_write_and_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    partial = outputs.start(output, F)
    (partial / "model.safetensors").write_text("new")
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "publish", lambda _: None)
        outputs.finish(output, outputs.record_of(F, {}, summary_of(output)))
    assert outputs.finished(output, F) is None  # nothing moves while the folder may be another process's
    assert not output.exists()
    outputs.publish_finished(output)
    assert outputs.finished(output, F) == summary_of(output)
    assert (output / "model.safetensors").read_text() == "new"


def test_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    output = tmp_path / "out"
    outputs.start(output, F)
    outputs.finish(output, outputs.record_of(F, {}, summary_of(output)))
    partial = outputs.start(output, G, fresh=True)
    (partial / "training.json").write_text(
        (output / "training.json").read_text().replace(sha256_of_json(F), sha256_of_json(G))
    )
    output.rename(tmp_path / "out.old")
    outputs.publish_finished(output)
    assert outputs.finished(output, G) == summary_of(output)
    assert not (tmp_path / "out.old").exists()
