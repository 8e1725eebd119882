"""A tiny model learns a marker word on 64 prompts, and is measured on 64 others."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from stairdata_schemas.rendering import load_tokenizer
from stairdata_training.config import DpoConfig, PrmConfig
from stairdata_training.dpo import train_dpo
from stairdata_training.held_out.bootstrap import Interval
from stairdata_training.held_out.dpo import measure_dpo
from stairdata_training.held_out.prm import measure_prm
from stairdata_training.held_out.shared_prompts import check_no_shared_prompts
from stairdata_training.inference.forward import answer_log_probs, rewards
from stairdata_training.models import load_causal_model, load_reward_model
from stairdata_training.prm import train_prm
from stairdata_training.tokens import dpo_row, prepare_tokenizer, prm_row, resize_embeddings
from tests.training.conftest import pair_row

Rows = list[dict[str, Any]]
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "learning_rate": 3e-3,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "max_length": 400,
    "gradient_checkpointing": False,
}


def marked_rows(numbers: range, *, shuffled: bool) -> Rows:
    """Pairs whose chosen step holds the word marker among words drawn by chance; shuffled, either side may hold it."""
    generator = random.Random(f"{numbers}/{shuffled}")  # noqa: S311
    rows = []
    for number in numbers:
        base = pair_row(number)
        prefix = base["chosen"][: base["prefix_length"]]
        words = [["marker", "filler"], ["filler", "marker"]][shuffled and generator.random() < 0.5]
        around = [" ".join(generator.choices(["one", "two", "red"], k=2)) for _ in words]
        sides = {
            side: f"{prefix}\n\n<|Reasoning_step|>\nTitle: B:\n{word} {other}\n<|/Reasoning_step|>"
            for side, word, other in zip(("chosen", "rejected"), words, around, strict=True)
        }
        rows.append(base | sides | {"chosen_is_terminal": False, "rejected_is_terminal": False})
    return rows


@pytest.fixture
def start(models: dict[str, Path], tmp_path: Path) -> Path:
    """The tiny model with the grammar's tags, as SFT leaves it."""
    tokenizer, network = load_tokenizer(models["chatml"]), load_causal_model(models["chatml"])
    resize_embeddings(network, tokenizer, prepare_tokenizer(tokenizer))
    network.save_pretrained(str(tmp_path / "start"))
    tokenizer.save_pretrained(str(tmp_path / "start"))
    return tmp_path / "start"


def parts(*, shuffled: bool) -> tuple[Rows, Rows]:
    training, evaluation = (marked_rows(numbers, shuffled=shuffled) for numbers in (range(64), range(64, 128)))
    check_no_shared_prompts(training, evaluation)
    return training, evaluation


def dpo_accuracy(start: Path, tmp_path: Path, *, shuffled: bool) -> tuple[Interval, Interval]:
    """Return accuracy and margin on the held-out part after a training."""
    training, evaluation = parts(shuffled=shuffled)
    config = DpoConfig(**SETTINGS, beta=0.1)
    train_dpo(Dataset.from_list(training), start, tmp_path / "dpo", config)
    tokenizer = load_tokenizer(tmp_path / "dpo")
    policy, reference = (answer_log_probs(load_causal_model(folder)) for folder in (tmp_path / "dpo", start))
    ids = [dpo_row(tokenizer, row) for row in evaluation]
    found = measure_dpo(policy, reference, evaluation, ids, pad_id=tokenizer.pad_token_id, beta=config.beta)
    return found.accuracy, found.margin


@pytest.mark.slow
def test_dpo_finds_the_marker_on_prompts_that_it_has_not_seen(start: Path, tmp_path: Path) -> None:
    accuracy, margin = dpo_accuracy(start, tmp_path, shuffled=False)
    assert accuracy.value >= 0.95
    assert margin.low is not None
    assert margin.low > 0


@pytest.mark.slow
def test_dpo_on_shuffled_labels_is_right_half_the_time(start: Path, tmp_path: Path) -> None:
    accuracy, _ = dpo_accuracy(start, tmp_path, shuffled=True)
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low <= 0.5 <= accuracy.high


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_reward_model_finds_the_marker_or_nothing(start: Path, tmp_path: Path, *, shuffled: bool) -> None:
    training, evaluation = parts(shuffled=shuffled)
    train_prm(Dataset.from_list(training), start, tmp_path / "prm", PrmConfig(**SETTINGS))
    tokenizer, network = load_tokenizer(tmp_path / "prm"), load_reward_model(tmp_path / "prm")
    network.config.pad_token_id = tokenizer.pad_token_id
    ids = [prm_row(tokenizer, row) for row in evaluation]
    found = measure_prm(rewards(network), evaluation, ids, pad_id=tokenizer.pad_token_id)
    assert found.accuracy.low is not None
    assert found.accuracy.high is not None
    if shuffled:
        assert found.accuracy.low <= 0.5 <= found.accuracy.high
        assert found.marks == ["not better than length"]
    else:
        assert found.accuracy.value >= 0.95
        assert found.better_than_length
