"""What enters the fingerprint of a training, and what does not."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stairdata_schemas.artifacts import Artifact
from stairdata_schemas.errors import TrainingError
from stairdata_schemas.fingerprints import mark_of
from stairdata_schemas.manifest import Manifest
from stairdata_training.config import TRAINED_ON, DpoConfig, LoraConfig, PrmConfig, SftConfig, TrainingConfig
from stairdata_training.plan import TrainingPlan

CONFIGS: dict[str, type[TrainingConfig]] = {"sft": SftConfig, "dpo": DpoConfig, "prm": PrmConfig}
CANNOT_CHANGE_THE_RESULT = {
    "model", "output", "checkpoint_steps", "gradient_checkpointing", "max_dropped", "report_to",
}  # fmt: skip
COUNT_BY_THEIR_PRODUCT = {"batch_size", "gradient_accumulation"}
OTHER_VALUES: dict[str, Any] = {
    "model": "org/other",
    "output": "elsewhere",
    "epochs": 7.0,
    "max_steps": 3,
    "max_rows": 5,
    "learning_rate": 1e-3,
    "batch_size": 9,
    "gradient_accumulation": 3,
    "max_length": 99,
    "warmup_ratio": 0.2,
    "scheduler": "linear",
    "weight_decay": 0.1,
    "max_grad_norm": 2.0,
    "seed": 7,
    "precision": "fp32",
    "gradient_checkpointing": False,
    "checkpoint_steps": 7,
    "lora": {"rank": 4},
    "too_long": "drop",
    "bad_rows": "drop",
    "max_dropped": 0.5,
    "save_dtype": "float32",
    "report_to": "tensorboard",
    "beta": 0.3,
    "loss": "ipo",
    "sft_weight": 0.5,
    "reasoning": False,
}


def artifact(method: str, content_hash: str = "c" * 64) -> Artifact:
    manifest = Manifest(
        kind=TRAINED_ON[method],
        version="1.0.0",
        schema_version=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        stairdata_version="0",
        generator="tests/1",
        configuration={},
        fingerprint="f",
        content_hash=content_hash,
        rows=1,
        files=[],
    )
    return Artifact(Path("nowhere"), manifest)


def fingerprint(method: str, config: TrainingConfig, data: Any = None, model: str | Path = "org/model") -> str:
    return TrainingPlan(method, data or artifact(method), model, Path("output"), config).fingerprint


@pytest.mark.parametrize("method", CONFIGS)
def test_each_field_counts_unless_it_cannot_change_the_result(method: str) -> None:
    config = CONFIGS[method]
    plain = fingerprint(method, config())
    for name in config.model_fields:
        if name == "label_smoothing":  # for one loss alone: below
            continue
        changed = config.model_validate({name: OTHER_VALUES[name]})
        assert getattr(changed, name) != getattr(config(), name)
        assert (fingerprint(method, changed) == plain) == (name in CANNOT_CHANGE_THE_RESULT), name
    marked = {name for name in config.model_fields if mark_of(config, name)}
    count_unless_default = {"reasoning"} & set(config.model_fields)
    assert marked == CANNOT_CHANGE_THE_RESULT | COUNT_BY_THEIR_PRODUCT | count_unless_default


def test_label_smoothing_counts_with_the_loss_that_has_it() -> None:
    robust = [DpoConfig(loss="robust", label_smoothing=share) for share in (0.0, 0.1)]
    assert fingerprint("dpo", robust[0]) != fingerprint("dpo", robust[1])
    with pytest.raises(ValueError, match="label_smoothing is for loss: robust"):
        DpoConfig(label_smoothing=0.1)


def test_the_split_of_a_step_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(batch: int, accumulation: int, processes: int) -> str:
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        return fingerprint("sft", SftConfig(batch_size=batch, gradient_accumulation=accumulation))

    assert len({of(4, 4, 1), of(2, 8, 1), of(2, 4, 2), of(1, 4, 4)}) == 1
    assert of(4, 4, 2) != of(4, 4, 1)


@pytest.mark.parametrize("name", LoraConfig.model_fields)
def test_each_field_of_the_adapters_counts(name: str) -> None:
    other = {"rank": 4, "alpha": 4, "dropout": 0.5, "target_modules": ["q_proj"]}
    changed = SftConfig(lora=LoraConfig.model_validate({name: other[name]}))
    assert fingerprint("sft", changed) != fingerprint("sft", SftConfig(lora=LoraConfig()))


@pytest.mark.parametrize(
    ("method", "config", "frozen"),
    [
        ("sft", SftConfig(), "d947cede28a053d92da370fa4f4e3a687cd1562783f0f2131ff879bcb7bf633b"),
        (
            "dpo",
            DpoConfig(beta=0.2, model="a", output="b"),
            "726087f6271129f1c077fb57ff857b827d01590576e1a35d169b953abb1efff2",
        ),
        ("prm", PrmConfig(lora=LoraConfig(rank=4)), "83e6b9e4b6915a32a50803f08ed0ff1e9a452b47106bb0d633acfda04150abf8"),
    ],
)
def test_finished_models_are_found_again(method: str, config: TrainingConfig, frozen: str) -> None:
    """A change here makes everybody's finished models those of another training: raise the trainer's number."""
    assert fingerprint(method, config) == frozen


def test_method_data_and_model_count(tmp_path: Path, models: dict[str, Path]) -> None:
    seen = [
        fingerprint("sft", SftConfig()),
        fingerprint("dpo", DpoConfig(learning_rate=5e-6, epochs=3)),
        fingerprint("prm", PrmConfig(epochs=3)),
        fingerprint("sft", SftConfig(), artifact("sft", "d" * 64)),
        fingerprint("sft", SftConfig(), model="org/other"),
        *(fingerprint("sft", SftConfig(), model=folder) for folder in models.values()),
    ]
    assert len(set(seen)) == len(seen)
    moved = tmp_path / "moved"
    moved.symlink_to(models["chatml"])
    assert fingerprint("sft", SftConfig(), model=moved) == fingerprint("sft", SftConfig(), model=models["chatml"])


def test_rows_count_by_content_and_order(sft_rows: list[dict[str, Any]]) -> None:
    def of(rows: list[dict[str, Any]]) -> str:
        return fingerprint("sft", SftConfig(), Dataset.from_list(rows))

    assert of(sft_rows) == of(sft_rows)
    assert of(sft_rows[::-1]) != of(sft_rows)
    assert of(sft_rows[1:]) != of(sft_rows)
    assert of([*sft_rows[1:], sft_rows[1] | {"output": "other"}]) != of([*sft_rows[1:], sft_rows[1]])


def test_an_artifact_of_another_kind_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"sft trains on structured_cot, not on 'preference_pairs@1.0.0'"):
        TrainingPlan("sft", artifact("dpo"), "org/model", Path("output"), SftConfig())


def test_a_plan_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'datasets'}"
    code = f"import sys, stairdata_training.plan; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
