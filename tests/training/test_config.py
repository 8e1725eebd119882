"""Settings and recipes."""

from __future__ import annotations

import re
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


EIGHT_GPUS = ("llama-8b-8gpu", "qwen2-7b-8gpu")
LEAST_LORA_RATE = {"sft": 1e-4, "dpo": 5e-6, "prm": 5e-6}
OF_RUNS = {"quickstart", "proof"}
TRAINED = [
    (path.stem, method)
    for path in sorted(RECIPES.glob("*.yaml"))
    for method in CONFIGS
    if method in yaml.safe_load(path.read_text(encoding="utf-8"))
]


def packaged(name: str, method: str) -> TrainingConfig:
    """Read what a packaged recipe says about a training."""
    return CONFIGS[method](**yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))[method])


@pytest.mark.parametrize(("name", "method"), TRAINED)
def test_recipes_train_with_figures_that_teach_something(name: str, method: str) -> None:
    config = packaged(name, method)
    if name not in OF_RUNS:  # a run names both
        assert config.model
        assert config.output
    if config.lora is not None:  # at the rates of full training adapters learn nothing
        assert config.learning_rate >= LEAST_LORA_RATE[method]
    if name not in {"cpu", *OF_RUNS}:
        processes = 8 if name in EIGHT_GPUS else 1
        assert config.batch_size * config.gradient_accumulation * processes == 128


@pytest.mark.parametrize(
    "name", ["dpo", "llama-8b-8gpu", "qwen2-7b-8gpu", "lora-1gpu", "trajectory-pairs", "one-round"]
)
def test_recipes_have_the_published_figures_of_dpo(name: str) -> None:
    config = packaged(name, "dpo")
    assert isinstance(config, DpoConfig)
    assert (config.beta, config.epochs, config.scheduler, config.warmup_ratio) == (0.2, 1, "cosine", 0.1)
    assert config.learning_rate == (5e-6 if config.lora else 5e-7)


@pytest.mark.parametrize("name", ["sft", "llama-8b-8gpu", "qwen2-7b-8gpu", "lora-1gpu", "direct-refusal"])
def test_recipes_have_the_figures_that_could_be_found_of_sft(name: str) -> None:
    config = packaged(name, "sft")
    assert (config.epochs, config.learning_rate) == (3, 1e-4 if config.lora else 5e-6)


def test_the_recipe_without_reasoning_differs_in_that_alone() -> None:
    kept = {"reasoning", "output", "checkpoint_steps"}
    one, other = (packaged(name, "sft").model_dump(exclude=kept) for name in ("sft", "direct-refusal"))
    assert one == other
    direct = packaged("direct-refusal", "sft")
    assert isinstance(direct, SftConfig)
    assert not direct.reasoning


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_recipe_says_where_its_figures_come_from(name: str) -> None:
    """Each mark such as [card] that stands beside a figure is explained at the top."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    top = text[: re.search(r"^\w", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    for mark in set(re.findall(r"\[[a-z]+\]", text)):
        assert mark in top, mark
    for command in re.findall(r"^#   .*stairdata .*$", re.sub(r"\\\n#\s*", "", top), re.MULTILINE):
        assert f"--recipe {name}" in command or f"stairdata run {name} " in command


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
