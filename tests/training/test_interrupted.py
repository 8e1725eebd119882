"""A training that ends at any point goes on with the same command, and ends like one that was not interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from stairdata_training.config import DpoConfig
from stairdata_training.dpo import train_dpo
from stairdata_training.output import TrainingSummary, partial_folder

Rows = list[dict[str, Any]]
CONFIG = DpoConfig(
    epochs=2, learning_rate=1e-3, batch_size=4, gradient_accumulation=1, max_length=400, checkpoint_steps=3,
    gradient_checkpointing=False, precision="fp32",
)  # fmt: skip
MOMENTS = {
    "the ids of a batch": ("stairdata_training.data.preparing._ids_of", 1),
    "the order of the rows": ("stairdata_training.data.preparing.step_order", 1),
    "the reference pass": ("stairdata_training.dpo.DpoTrainer.compute_ref_log_probs", 3),
    "the reference is kept": ("stairdata_training.data.reference_logps._keep", 1),
    "a checkpoint": ("transformers.Trainer._save_optimizer_and_scheduler", 2),
    "the measure of rounding": ("stairdata_training.running.round_weights", 1),
    "the saved weights": ("stairdata_training.running.write_card", 1),
    "the last rename": ("stairdata_training.output.publish", 1),
}


class Ended(BaseException):
    """What no handler of errors takes for one."""


def interrupted(target: str, call: int, patch: pytest.MonkeyPatch) -> None:
    """Let a function end everything at one of its calls."""
    from importlib import import_module

    module, *attributes = target.rsplit(".", 2)
    try:
        owner: Any = import_module(f"{module}.{attributes[0]}")
    except ModuleNotFoundError:
        owner = getattr(import_module(module), attributes[0])
    original: Callable[..., Any] = getattr(owner, attributes[-1])
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Ended
        return original(*args, **kwargs)

    patch.setattr(owner, attributes[-1], counted)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_command_goes_on(
    moment: str, actors: dict[str, Path], pair_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: str) -> TrainingSummary:
        folder = tmp_path / output
        folder.mkdir(exist_ok=True)
        return train_dpo(Dataset.from_list(pair_rows), actors["llama3"], folder / "out", CONFIG)

    with monkeypatch.context() as patch:
        interrupted(*MOMENTS[moment], patch)
        with pytest.raises(Ended):
            run("ended")
    output = tmp_path / "ended" / "out"
    assert not output.exists()
    assert partial_folder(output).is_dir()
    again, straight = run("ended"), run("straight")
    assert (again.losses, again.tokens) == (straight.losses, straight.tokens)
    ours, theirs = (load_file(str(tmp_path / name / "out" / "model.safetensors")) for name in ("ended", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not partial_folder(output).exists()
