"""Settings and recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from stairdata_training.config import DpoConfig, PrmConfig, SftConfig, TrainingConfig

RECIPES = Path(__file__).parents[2] / "stairdata" / "recipes"
CONFIGS: dict[str, type[TrainingConfig]] = {"sft": SftConfig, "dpo": DpoConfig, "prm": PrmConfig}


@pytest.mark.parametrize("method", CONFIGS)
def test_recipes_are_read(method: str) -> None:
    text = (RECIPES / f"{method}.yaml").read_text(encoding="utf-8")
    config = CONFIGS[method](**yaml.safe_load(text)[method])
    assert config.batch_size * config.gradient_accumulation == 128
    assert text.startswith(f"# stairdata train {method} --recipe {method} --input ")


@pytest.mark.parametrize("wrong", [{"learning_rat": 1}, {"epochs": 0}, {"precision": "fp8"}, {"lora": {"r": 4}}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SftConfig(**wrong)


def test_beta_is_dpos_alone() -> None:
    assert DpoConfig().beta == 0.1
    with pytest.raises(ValidationError, match="beta"):
        SftConfig(**{"beta": 0.1})


def test_the_settings_import_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'datasets'}"
    code = f"import sys, stairdata_training.config; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
