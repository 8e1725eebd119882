"""What --dry-run says is what the training then is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stairdata_schemas.errors import ModelError, TrainingError
from stairdata_training.config import DpoConfig, LoraConfig, PrmConfig, SftConfig
from stairdata_training.dpo import DPO
from stairdata_training.estimate import Estimate, estimate
from stairdata_training.plan import TrainingPlan
from stairdata_training.prm import PRM
from stairdata_training.running import train
from stairdata_training.sft import SFT
from stairdata_training.trainers.method import prepare_trainer

Rows = list[dict[str, Any]]
METHODS = {"sft": (SFT, SftConfig), "dpo": (DPO, DpoConfig), "prm": (PRM, PrmConfig)}
COMMON: dict[str, Any] = {"epochs": 2, "batch_size": 2, "gradient_accumulation": 2, "max_length": 400}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
@pytest.mark.parametrize("name", METHODS)
def test_parameters_steps_and_tokens_are_those_of_the_training(
    name: str, lora: LoraConfig | None, starts: dict[str, dict[str, Path]], sft_rows: Rows, pair_rows: Rows,
    tmp_path: Path,
) -> None:  # fmt: skip
    method, make = METHODS[name]
    rows = Dataset.from_list(sft_rows if name == "sft" else pair_rows)
    plan = TrainingPlan(name, rows, starts[name]["llama3"], tmp_path / "out", make(lora=lora, **COMMON))
    expected = estimate(plan, method)
    assert not (tmp_path / "out").exists()
    trainer = prepare_trainer(method, rows, plan.model, plan.config, tmp_path).trainer
    weights = list(trainer.model.parameters())
    assert expected.trained_parameters == sum(weight.numel() for weight in weights if weight.requires_grad)
    if lora is None:
        assert expected.parameters == sum(weight.numel() for weight in weights)
        summary = train(plan, method)
        assert expected.steps == summary.steps == 8
        assert expected.tokens == summary.tokens or name == "sft"  # TRL counts the trained tokens of SFT alone
    assert expected.memory_gb >= 0


def test_rows_that_would_be_left_out_are_counted(actors: dict[str, Path], pair_rows: Rows, tmp_path: Path) -> None:
    rows = Dataset.from_list(pair_rows)

    def of(**changes: Any) -> Estimate:
        config = DpoConfig(**(COMMON | changes))
        return estimate(TrainingPlan("dpo", rows, actors["chatml"], tmp_path / "out", config), DPO)

    longest = of().lengths.longest
    found = of(too_long="drop", max_dropped=0.9, max_length=longest - 1)
    assert 0 < found.dropped["too_long"] == found.lengths.too_long < 16
    with pytest.raises(TrainingError, match=rf"longer than max_length \({longest - 1} tokens"):
        of(max_length=longest - 1)
    assert not (tmp_path / "out").exists()


def test_a_start_without_tags(models: dict[str, Path], pair_rows: Rows, tmp_path: Path) -> None:
    plan = TrainingPlan("dpo", Dataset.from_list(pair_rows), models["chatml"], tmp_path / "out", DpoConfig())
    with pytest.raises(ModelError, match="run `stairdata train sft` first"):
        estimate(plan, DPO)


def test_sharded_weights_take_less_memory(
    actors: dict[str, Path], pair_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stairdata_training.estimate._GB", 1.0)  # the model is tiny
    config = DpoConfig(**(COMMON | {"precision": "fp32", "batch_size": 1}))
    plan = TrainingPlan("dpo", Dataset.from_list(pair_rows), actors["llama3"], tmp_path / "out", config, processes=64)
    whole = estimate(plan, DPO)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharded = estimate(plan, DPO)
    gathered = 4 * sharded.parameters  # of two layers, which are nearly all of this model
    assert 16 * whole.parameters * 63 / 64 - gathered < whole.memory_gb - sharded.memory_gb < 15.75 * whole.parameters
