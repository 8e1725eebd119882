"""`--eval-input`: a finished model is measured once on the pairs that are named, also after its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stairdata_schemas.errors import TrainingError
from stairdata_training.config import DpoConfig, PrmConfig, SftConfig, TrainingConfig
from stairdata_training.dpo import DPO
from stairdata_training.plan import TrainingPlan
from stairdata_training.prm import PRM
from stairdata_training.running import train
from stairdata_training.trainers.method import Method
from tests.training.conftest import pair_row

SETTINGS: dict[str, Any] = {
    "epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "gradient_accumulation": 1, "max_length": 400,
    "gradient_checkpointing": False, "precision": "fp32",
}  # fmt: skip
METHODS: dict[str, tuple[Method, TrainingConfig]] = {
    "dpo": (DPO, DpoConfig(**SETTINGS)),
    "prm": (PRM, PrmConfig(**SETTINGS)),
}


def rows(numbers: range) -> Dataset:
    made = [pair_row(number) | {"task": ("safety", "helpfulness")[number % 2], "depth": 2} for number in numbers]
    return Dataset.from_list(made)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_measures_come_into_the_record_and_the_card(name: str, actors: dict[str, Path], tmp_path: Path) -> None:
    method, config = METHODS[name]
    told: list[str] = []

    def run(evaluation: Dataset | None) -> dict[str, Any]:
        plan = TrainingPlan(name, rows(range(16)), actors["chatml"], tmp_path / "out", config, evaluation)
        train(plan, method, tell=told.append)
        assert plan.finished() is not None
        return record(tmp_path / "out")

    assert "held_out" not in run(None)
    weights = tmp_path / "out" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    found = run(rows(range(20, 32)))["held_out"]
    assert weights.stat().st_mtime_ns == before
    assert found["accuracy"]["rows"] == found["accuracy"]["prompts"] == 12
    assert found["left_out"] == 0
    assert "measuring on 12 held-out pairs" in told
    assert f"held-out accuracy {found['accuracy']['value']:.3f}" in " ".join(told)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "accuracy" in card
    if name == "prm":
        assert ("not better than length" in card) == (found["better_than_length"] is False)
    told.clear()
    assert run(rows(range(20, 32)))["held_out"] == found
    assert told == []


def test_pairs_of_the_trainings_prompts_measure_nothing(actors: dict[str, Path], tmp_path: Path) -> None:
    plan = TrainingPlan(
        "dpo", rows(range(16)), actors["chatml"], tmp_path / "out", METHODS["dpo"][1], rows(range(12, 20))
    )
    with pytest.raises(TrainingError, match="4 of the 8 prompts to evaluate on are in the training too"):
        train(plan, DPO)
    assert not (tmp_path / "out").exists()
    with pytest.raises(TrainingError, match="train sft has no measures on held-out rows"):
        TrainingPlan("sft", rows(range(4)), actors["chatml"], tmp_path / "out", SftConfig(), rows(range(4)))
