"""Measures of held-out pairs: planted signals, none at all, ties, and what the model itself says."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from stairdata_schemas import identity
from stairdata_schemas.errors import TrainingError
from stairdata_schemas.rendering import encode, encode_prompt, end_of_turn, load_tokenizer
from stairdata_training.config import LoraConfig
from stairdata_training.held_out import NOT_BETTER
from stairdata_training.held_out.bootstrap import Interval
from stairdata_training.held_out.dpo import DpoMeasures, measure_dpo
from stairdata_training.held_out.lengths import length_correlation, length_rule
from stairdata_training.held_out.prm import (
    PrmMeasures,
    calibration,
    expected_calibration_error,
    measure_prm,
)
from stairdata_training.held_out.shared_prompts import check_no_shared_prompts, shared_prompts
from stairdata_training.inference.forward import (
    AnswerLogProbs,
    PaddedBatch,
    Rewards,
    answer_log_probs,
    base_log_probs,
    pad,
    rewards,
)
from stairdata_training.models import adapter_config, load_causal_model, load_reward_model
from stairdata_training.tokens import dpo_row, prepare_tokenizer, prm_row, resize_embeddings
from tests.training.conftest import pair_row

Rows = list[dict[str, Any]]


def marked_rows(prompts: int, *, shuffled: bool = False) -> Rows:
    """Pairs of equal length whose chosen step holds a marker word; shuffled, either side holds it by chance."""
    generator, rows = random.Random(4), []  # noqa: S311
    for number in range(prompts):
        words = ["marker", "filler"]
        if shuffled:
            generator.shuffle(words)
        base = pair_row(number)
        prefix = base["chosen"][: base["prefix_length"]]
        sides = {
            side: f"{prefix}\n\n<|Reasoning_step|>\nTitle: B:\n{word}\n<|/Reasoning_step|>"
            for side, word in zip(("chosen", "rejected"), words, strict=True)
        }
        task = ("safety", "helpfulness")[number % 2]
        ends = {"chosen_is_terminal": number % 4 == 0, "rejected_is_terminal": number % 4 == 0}
        rows.append(base | sides | ends | {"task": task, "depth": 1 + number % 12})
    return rows


class MarkerModel:
    """Scores a sequence by its letters k, of which the marker word has one more than the other."""

    def __init__(self, tokenizer: Any) -> None:
        self.letter = tokenizer.convert_tokens_to_ids("k")
        self.batches: list[PaddedBatch] = []

    def __call__(self, batch: PaddedBatch) -> list[float]:
        self.batches.append(batch)
        return (batch.input_ids == self.letter).sum(1).double().tolist()  # type: ignore[no-any-return]


def dpo(policy: AnswerLogProbs, reference: AnswerLogProbs, tokenizer: Any, rows: Rows, **options: Any) -> DpoMeasures:
    ids = [dpo_row(tokenizer, row) for row in rows]
    return measure_dpo(policy, reference, rows, ids, pad_id=tokenizer.pad_token_id, **options)


def prm(scores: Rewards, tokenizer: Any, rows: Rows) -> PrmMeasures:
    ids = [prm_row(tokenizer, row) for row in rows]
    return measure_prm(scores, rows, ids, pad_id=tokenizer.pad_token_id)


def nothing(batch: PaddedBatch) -> list[float]:
    return [0.0] * len(batch.input_ids)


def contains(interval: Interval, value: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= value <= interval.high


def test_a_planted_signal_is_found_by_a_policy_that_knows_it(chatml: Any) -> None:
    rows = marked_rows(64)
    found = dpo(MarkerModel(chatml), nothing, chatml, rows, beta=0.1)
    assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == (1, 1, 1)
    assert (found.accuracy.prompts, found.accuracy.rows) == (64, 64)
    assert found.margin.value == pytest.approx(0.1)
    assert list(found.accuracy_by_task) == ["helpfulness", "safety"]
    assert {name: part.rows for name, part in found.accuracy_by_end.items()} == {"partial": 48, "terminal": 16}
    turned = dpo(nothing, MarkerModel(chatml), chatml, rows, beta=0.1)
    assert turned.accuracy.value == 0
    assert turned.margin.value == pytest.approx(-0.1)


def test_labels_by_chance_are_right_half_the_time(chatml: Any) -> None:
    rows = marked_rows(128, shuffled=True)
    of_dpo = dpo(MarkerModel(chatml), nothing, chatml, rows, beta=0.1)
    of_prm = prm(MarkerModel(chatml), chatml, rows)
    assert contains(of_dpo.accuracy, 0.5)
    assert contains(of_prm.accuracy, 0.5)
    assert contains(of_dpo.margin, 0)
    assert not of_prm.better_than_length


def test_a_tie_counts_half(chatml: Any) -> None:
    rows = marked_rows(8)
    of_dpo = dpo(nothing, nothing, chatml, rows, beta=0.1)
    assert (of_dpo.accuracy.value, of_dpo.margin.value) == (0.5, 0)
    of_prm = prm(nothing, chatml, rows)
    assert of_prm.accuracy.value == 0.5
    assert (of_prm.calibration[0].pairs, of_prm.calibration[0].accuracy) == (8, 0.5)
    assert of_prm.expected_calibration_error == 0


def test_a_reward_model_that_knows_the_signal_beats_the_length_rule(chatml: Any) -> None:
    found = prm(MarkerModel(chatml), chatml, marked_rows(64))
    assert found.accuracy.value == 1
    assert found.length_rule.accuracy.value == 0.5  # all pairs have equal lengths
    assert found.better_than_length
    assert found.marks == []
    assert list(found.accuracy_by_depth) == [str(depth) for depth in range(1, 13)]
    assert sum(part.rows for part in found.accuracy_by_depth.values()) == 64
    assert json.loads(json.dumps(asdict(found)))["accuracy"]["prompts"] == 64


def test_a_reward_model_that_knows_lengths_alone_is_marked(chatml: Any) -> None:
    def shortest(batch: PaddedBatch) -> list[float]:
        return (-batch.attention_mask.sum(1)).double().tolist()

    rows = [pair_row(number) for number in range(40)]  # every other one's chosen side is as long as "bad "
    found = prm(shortest, chatml, rows)
    assert found.length_rule.prefers == "shorter"
    assert found.accuracy == found.length_rule.accuracy
    assert not found.better_than_length
    assert found.marks == [NOT_BETTER]


def test_a_model_that_is_wrong_on_one_task_is_marked(chatml: Any) -> None:
    """What is right on one task, such as to decline, is wrong on the other."""
    rows = [row | {"task": "safety" if number % 2 else "helpfulness"} for number, row in enumerate(marked_rows(64))]
    turned = [
        row if row["task"] == "safety" else row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows
    ]
    found = prm(MarkerModel(chatml), chatml, turned)
    assert found.wrong_way == ["helpfulness"]
    assert "ranks pairs of helpfulness prompts the wrong way round" in found.marks
    assert prm(MarkerModel(chatml), chatml, rows).wrong_way == []
    assert dpo(nothing, nothing, chatml, rows, beta=0.1).wrong_way == []


def test_a_policy_that_makes_every_token_less_likely_prefers_the_shorter_side(chatml: Any) -> None:
    def drifted(batch: PaddedBatch) -> list[float]:
        return (-0.03 * batch.attention_mask.sum(1)).double().tolist()

    rows = [pair_row(number) for number in range(40)]
    found = dpo(drifted, nothing, chatml, rows, beta=0.1)
    assert found.length_correlation == pytest.approx(-1)
    assert found.length_rule.prefers == "shorter"
    assert found.accuracy == found.length_rule.accuracy
    assert dpo(nothing, nothing, chatml, rows, beta=0.1).length_correlation is None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(-50, 50)), min_size=2))
def test_the_correlation_with_lengths_is_pearsons(drawn: list[tuple[int, int, int]]) -> None:
    margins, longer = [margin / 10 for *_, margin in drawn], [chosen - rejected for chosen, rejected, _ in drawn]
    found = length_correlation(margins, [pair(chosen, rejected) for chosen, rejected, _ in drawn])
    if len(set(margins)) == 1 or len(set(longer)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(margins, longer)[0, 1], abs=1e-9)


def pair(chosen: int, rejected: int) -> Any:
    return {"chosen_ids": [1] * chosen, "rejected_ids": [1] * rejected, "length": max(chosen, rejected)}


def test_the_length_rule_is_the_better_of_two() -> None:
    pairs = [pair(5, 3), pair(5, 3), pair(5, 5), pair(2, 3)]
    longer = length_rule(pairs, list("abcd"))
    assert (longer.prefers, longer.accuracy.value) == ("longer", 2.5 / 4)
    shorter = length_rule([pair(3, 5), pair(3, 5), pair(4, 2)], list("abc"))
    assert shorter.prefers == "shorter"
    assert shorter.accuracy.value == pytest.approx(2 / 3)


def test_one_prompt_says_nothing_about_length(chatml: Any) -> None:
    row = marked_rows(1)[0]
    found = prm(MarkerModel(chatml), chatml, [row, row | {"pair_id": "other"}])
    assert (found.accuracy.value, found.accuracy.low) == (1, None)
    assert found.marks == [NOT_BETTER]


def test_a_model_that_draws_its_own_preferences_is_calibrated() -> None:
    generator = random.Random(3)  # noqa: S311
    differences = []
    for _ in range(20000):
        strength = generator.uniform(0, 4)
        sure = 1 / (1 + math.exp(-strength))
        differences.append(strength if generator.random() < sure else -strength)
    bins = calibration(differences)
    assert [(found.low, found.high) for found in bins][:2] == [(0.5, 0.55), (0.55, 0.6)]
    assert sum(found.pairs for found in bins) == 20000
    assert expected_calibration_error(bins) < 0.02
    doubled = calibration([2 * difference for difference in differences])  # too sure of itself
    assert expected_calibration_error(doubled) > 0.05
    assert all(found.accuracy < found.confidence for found in doubled[3:] if found.accuracy and found.confidence)


def test_the_calibration_error_is_the_mean_gap() -> None:
    # sure to 0.92 of four pairs, of which three are right: a gap of 0.17
    strength = math.log(0.92 / 0.08)
    bins = calibration([strength] * 3 + [-strength])
    assert expected_calibration_error(bins) == pytest.approx(0.17)
    assert [found.pairs for found in bins] == [0] * 8 + [4, 0]
    assert bins[0].accuracy is None
    assert calibration([1000.0, -1000.0])[-1].pairs == 2


def test_both_sides_and_both_models_see_the_same_batches(chatml: Any) -> None:
    rows = [pair_row(number) for number in range(10)]
    policy, reference = MarkerModel(chatml), MarkerModel(chatml)
    dpo(policy, reference, chatml, rows, beta=0.1, batch_size=3)
    assert len(policy.batches) == 4
    widths = [batch.input_ids.shape[1] for batch in policy.batches]
    assert widths == sorted(widths, reverse=True)
    for one, other in zip(policy.batches, reference.batches, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.answer_mask, other.answer_mask)


def test_no_rows_are_an_error(chatml: Any) -> None:
    with pytest.raises(TrainingError, match="no held-out pairs"):
        prm(nothing, chatml, [])
    with pytest.raises(TrainingError, match="no held-out pairs"):
        dpo(nothing, nothing, chatml, [], beta=0.1)


# -- with models ----------------------------------------------------------------------------------------------


def loaded(folder: Path) -> tuple[Any, Any]:
    tokenizer, network = load_tokenizer(folder), load_causal_model(folder)
    resize_embeddings(network, tokenizer, prepare_tokenizer(tokenizer))
    return tokenizer, network


def test_log_probabilities_are_those_of_the_answer_after_its_prefix(models: dict[str, Path], family: str) -> None:
    tokenizer, network = loaded(models[family])
    rows = [pair_row(number) for number in range(5)]
    prompts = [encode_prompt(tokenizer, row["prompt"], row["chosen"][: row["prefix_length"]]) for row in rows]
    answers = [
        encode(tokenizer, row["rejected"][row["prefix_length"] :])
        + ([end_of_turn(tokenizer).token_id] if row["rejected_is_terminal"] else [])
        for row in rows
    ]
    batch = pad([a + b for a, b in zip(prompts, answers, strict=True)], tokenizer.pad_token_id, list(map(len, prompts)))
    found = answer_log_probs(network)(batch)
    for prompt, answer, value in zip(prompts, answers, found, strict=True):
        with torch.no_grad():
            log_probs = network(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        expected = sum(log_probs[len(prompt) + index - 1, token].item() for index, token in enumerate(answer))
        assert value == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_policy_that_learnt_nothing_has_no_margin_at_all(models: dict[str, Path], *, bf16: bool) -> None:
    tokenizer, network = loaded(models["chatml"])
    _, start = loaded(models["chatml"])
    rows = [pair_row(number) for number in range(9)]
    policy, reference = (answer_log_probs(model, bf16=bf16) for model in (network, start))
    found = dpo(policy, reference, tokenizer, rows, beta=0.1)
    assert (found.margin.low, found.margin.high, found.accuracy.value) == (0, 0, 0.5)


def test_adapters_are_compared_with_the_model_below_them(models: dict[str, Path]) -> None:
    from peft import get_peft_model

    tokenizer, network = loaded(models["chatml"])
    _, start = loaded(models["chatml"])
    config = adapter_config(LoraConfig(rank=4), network, trains_embeddings=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(network, config).train()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.add_(0.3)
    rows = [pair_row(number) for number in range(6)]
    policy = answer_log_probs(adapted)
    by_switch = dpo(policy, base_log_probs(adapted), tokenizer, rows, beta=0.1)
    by_copy = dpo(policy, answer_log_probs(start), tokenizer, rows, beta=0.1)
    assert by_switch.margin.value != 0
    assert by_switch.margin.value == pytest.approx(by_copy.margin.value, abs=1e-6)
    assert adapted.training  # as it was before


def test_rewards_of_a_batch_are_those_of_single_texts(models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(models["chatml"])
    new = prepare_tokenizer(tokenizer)
    network = load_reward_model(models["chatml"], head_seed=1)
    resize_embeddings(network, tokenizer, new)
    network.config.pad_token_id = tokenizer.pad_token_id
    sequences = [encode_prompt(tokenizer, text) for text in ("a", "a longer one", "?")]
    score = rewards(network)
    alone = [score(pad([ids], tokenizer.pad_token_id))[0] for ids in sequences]
    assert score(pad(sequences, tokenizer.pad_token_id)) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 3


# -- prompts in both parts --------------------------------------------------------------------------------------


def prompt_row(text: str) -> dict[str, Any]:
    return {"prompt_id": identity.prompt_id(text), "prompt": text, "chosen": "long"}


@pytest.mark.parametrize("wrap", [list, Dataset.from_list])
def test_prompts_in_both_parts_are_counted_and_refused(wrap: Any) -> None:
    training = wrap([prompt_row(text) for text in ("How to?", "Why?", "Why?", "When?")])
    evaluation = wrap([prompt_row(text) for text in ("why?\n", "WHY? ", "Where?", "When?", "When?", "Who?")])
    assert shared_prompts(training, evaluation) == 3
    with pytest.raises(TrainingError, match="3 of the 5 prompts to evaluate on are in the training too"):
        check_no_shared_prompts(training, evaluation)
    check_no_shared_prompts(training, wrap([prompt_row("Who?")]))
