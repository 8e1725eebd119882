"""Nothing goes wrong in silence: numbers that leave the finite, rows that teach something wrong, rounding."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from stairdata_schemas.errors import ModelError, TrainingError
from stairdata_training.config import DpoConfig, SftConfig, TrainingConfig
from stairdata_training.data.reference_logps import FOLDER
from stairdata_training.dpo import DPO, DpoTrainer, train_dpo
from stairdata_training.models import not_finite, save_model
from stairdata_training.output import failures_named, partial_folder
from stairdata_training.plan import TrainingPlan
from stairdata_training.prm import PRM
from stairdata_training.record.rounding import changed_share
from stairdata_training.running import train
from stairdata_training.sft import SFT
from tests.training.conftest import pair_row

Rows = list[dict[str, Any]]
COMMON: dict[str, Any] = {
    "learning_rate": 1e-3, "batch_size": 4, "gradient_accumulation": 1, "max_length": 400, "precision": "fp32",
    "gradient_checkpointing": False,
}  # fmt: skip
METHODS = {"sft": SFT, "dpo": DPO, "prm": PRM}


def dpo_config(**changes: Any) -> DpoConfig:
    return DpoConfig(**(COMMON | changes))


def trained(
    rows: Rows, model: Path, output: Path, config: TrainingConfig, method: str = "dpo"
) -> tuple[dict[str, Any], list[str]]:
    """Train, and return what training.json says and what was told."""
    told: list[str] = []
    train(TrainingPlan(method, Dataset.from_list(rows), model, output, config), METHODS[method], tell=told.append)
    record: dict[str, Any] = json.loads((output / "training.json").read_text(encoding="utf-8"))
    return record, told


def test_a_learning_rate_that_breaks_the_model_publishes_nothing(
    actors: dict[str, Path], pair_rows: Rows, tmp_path: Path
) -> None:
    config = dpo_config(epochs=3, learning_rate=1e30, warmup_ratio=0, scheduler="constant")
    with pytest.raises(
        TrainingError, match=r"step \d+ of train dpo: .* not finite. .*lower dpo.learning_rate \(1e\+30"
    ):
        train_dpo(Dataset.from_list(pair_rows), actors["chatml"], tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_keeps_the_checkpoint_before_it(
    value: float, actors: dict[str, Path], pair_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = DpoTrainer._compute_loss, []

    def broken(self: Any, *args: Any) -> Any:
        calls.append(1)
        return compute(self, *args) * (value if len(calls) == 3 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(DpoTrainer, "_compute_loss", broken)
        config = dpo_config(checkpoint_steps=1)
        with pytest.raises(TrainingError, match="step 3 of train dpo: the loss is"):
            train_dpo(Dataset.from_list(pair_rows), actors["chatml"], tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    checkpoints = partial_folder(tmp_path / "out") / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    steps: list[int] = []
    train_dpo(
        Dataset.from_list(pair_rows), actors["chatml"], tmp_path / "out", config,
        on_progress=lambda step, *_: steps.append(step),
    )  # fmt: skip
    assert steps == [3, 4]


def test_weights_are_looked_at_before_they_are_written(actors: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(str(actors["chatml"]), dtype=torch.float32)
    assert not_finite(network) is None
    network.model.layers[1].mlp.up_proj.weight.data[3, 2] = 3.4e38  # finite, and infinite once rounded
    with pytest.raises(TrainingError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds values"):
        save_model(network, None, tmp_path / "saved", "bfloat16")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("method", ["dpo", "prm"])
def test_a_model_without_tags_goes_through_sft_first(
    method: str, models: dict[str, Path], pair_rows: Rows, tmp_path: Path
) -> None:
    plan = TrainingPlan(method, Dataset.from_list(pair_rows), models["llama3"], tmp_path / "out", dpo_config())
    with pytest.raises(ModelError, match=r"no single token for <\|Reasoning_step\|>.*run `stairdata train sft` first"):
        train(plan, METHODS[method])
    assert not (tmp_path / "out").exists()


BAD: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "end of turn": lambda row: row | {"rejected": row["rejected"].replace("bad", "b<|im_end|>ad")},
    "another control token": lambda row: row | {"rejected": row["rejected"].replace("bad", "b<|im_start|>ad")},
    "one text twice": lambda row: row | {"rejected": row["chosen"]},
    "other prefixes": lambda row: row | {"rejected": "x" + row["rejected"]},
    "nothing after the prefix": lambda row: row | {"rejected": row["rejected"][: row["prefix_length"]]},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_an_error_or_left_out(kind: str, actors: dict[str, Path], tmp_path: Path) -> None:
    rows = [pair_row(number) for number in range(40)]
    rows[6] = BAD[kind](rows[6])
    name = rows[6]["pair_id"]
    with pytest.raises(TrainingError, match=f"row pair_id='{name}'"):
        trained(rows, actors["chatml"], tmp_path / "out", dpo_config(max_steps=1))
    record, told = trained(rows, actors["chatml"], tmp_path / "dropped", dpo_config(max_steps=1, bad_rows="drop"))
    assert record["dropped"] == {"bad_rows": [f"row pair_id='{name}'"]}
    assert record["summary"]["rows"] == 39
    assert any("1 rows were left out (bad rows)" in each for each in told)
    with pytest.raises(TrainingError, match=r"1 of 8 rows would be left out, more than max_dropped \(5%\)"):
        trained(rows[:8], actors["chatml"], tmp_path / "few", dpo_config(bad_rows="drop"))


@pytest.mark.slow
def test_long_rows_are_left_out_where_told(actors: dict[str, Path], tmp_path: Path) -> None:
    rows = [pair_row(number) for number in range(40)]
    rows[3] = pair_row(3, rejected=rows[3]["rejected"].replace("bad", "bad " * 60))
    config = dpo_config(max_steps=1, max_length=200, too_long="drop")
    record, told = trained(rows, actors["chatml"], tmp_path / "out", config)
    assert record["dropped"] == {"too_long": [f"row pair_id='{rows[3]['pair_id']}'"]}
    assert record["lengths"]["too_long"] == 1
    assert "1 over max_length 200" in told[0]


def test_lengths_are_told_before_weights_are_loaded(
    actors: dict[str, Path], pair_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise ModelError("weights are loaded")

    told: list[str] = []
    monkeypatch.setattr("stairdata_training.dpo.load_causal_model", never)
    plan = TrainingPlan("dpo", Dataset.from_list(pair_rows), actors["chatml"], tmp_path / "out", dpo_config())
    with pytest.raises(ModelError, match="weights are loaded"):
        train(plan, DPO, tell=told.append)
    (line,) = told
    assert line.startswith("16 rows, ")
    assert "lengths " in line


@pytest.mark.slow
def test_what_rounding_leaves_is_recorded(actors: dict[str, Path], pair_rows: Rows, tmp_path: Path) -> None:
    slow = dpo_config(learning_rate=1e-7, epochs=2, warmup_ratio=0)
    record, told = trained(pair_rows, actors["chatml"], tmp_path / "slow", slow)
    assert record["weights"]["margin_left"] < 0.9
    assert record["weights"]["changed_share"] < 0.5
    assert any("of the margin that dpo trained is left in the saved weights" in each for each in told)
    whole, told = trained(
        pair_rows, actors["chatml"], tmp_path / "whole", slow.model_copy(update={"save_dtype": "float32"})
    )
    assert (whole["weights"]["dtype"], whole["weights"]["margin_left"]) == ("float32", 1.0)
    assert whole["weights"]["changed_share"] > 0.9
    assert not any("margin" in each for each in told)


def test_equal_weights_have_no_changed_share(actors: dict[str, Path]) -> None:
    assert changed_share(actors["chatml"], actors["chatml"]) == 0
    assert changed_share("nobody/has-this-model", actors["chatml"]) is None


@pytest.mark.slow
def test_another_beta_uses_the_reference_that_is_kept(
    actors: dict[str, Path], pair_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = trained(pair_rows, actors["chatml"], tmp_path / "a", dpo_config(beta=0.1, max_steps=2))
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    computed: list[str] = []
    compute = DpoTrainer.compute_ref_log_probs

    def counted(self: Any, *args: Any) -> Any:
        computed.append("batch")
        return compute(self, *args)

    monkeypatch.setattr(DpoTrainer, "compute_ref_log_probs", counted)
    second, _ = trained(pair_rows, actors["chatml"], tmp_path / "b", dpo_config(beta=0.5, max_steps=2))
    assert computed == []
    assert second["metrics"][0]["logps/chosen"] == first["metrics"][0]["logps/chosen"]
    other = [pair_row(number) for number in range(17, 33)]
    trained(other, actors["chatml"], tmp_path / "c", dpo_config(max_steps=1))
    assert len(computed) == 4


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
              RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_too_little_memory_names_the_settings_that_need_it(error: Exception, tmp_path: Path) -> None:
    words = r"needs more memory than there is: .*sft.batch_size.*sft.gradient_checkpointing.*sft.lora"
    with pytest.raises(TrainingError, match=words), failures_named(tmp_path, "sft"):
        raise error


def test_settings_that_a_loss_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_config(label_smoothing=0.2)
    assert SftConfig().save_dtype == "bfloat16"
