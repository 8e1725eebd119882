"""Golden ids: where end-of-turn stands, and what the loss sees, in two template families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stairdata_schemas.errors import ModelError, TrainingError
from stairdata_schemas.grammar import TAGS
from stairdata_schemas.rendering import encode, end_of_turn, load_tokenizer, missing_tags
from stairdata_training.tokens import (
    IGNORED,
    direct_row,
    dpo_row,
    prepare_tokenizer,
    prm_ids,
    prm_row,
    resize_embeddings,
    sft_row,
)
from tests.training.conftest import byte_tokenizer

HEAD = {
    "chatml": ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}
END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
STEP = "<|Reasoning_step|>\nTitle: A:\nab\n<|/Reasoning_step|>"
MORE = "\n\n<|Reasoning_step|>\nTitle: B:\ncd\n<|/Reasoning_step|>"
DONE = "\n\n<|Output|>\nFinal Answer:\nyes\n<|/Output|>"
WHOLE = STEP + DONE


def pair(chosen: str, rejected: str, *, terminal: tuple[bool, bool], cut: int) -> dict[str, Any]:
    return {
        "pair_id": "0123456789abcdef",
        "prompt": "hi",
        "chosen": chosen,
        "rejected": rejected,
        "prefix_length": cut,
        "chosen_is_terminal": terminal[0],
        "rejected_is_terminal": terminal[1],
    }


def cot(completion: str) -> dict[str, Any]:
    return {"prompt_id": "8f434346648f6b96", "prompt": "hi", "completion": completion}


def test_each_tag_is_one_id(tokenizer: Any, family: str) -> None:
    first = {"chatml": 259, "llama3": 261}[family]
    assert [encode(tokenizer, tag) for tag in TAGS] == [[first], [first + 1], [first + 2], [first + 3]]
    assert missing_tags(tokenizer) == []


def test_padding_is_not_the_end_of_turn(tokenizer: Any, family: str) -> None:
    assert tokenizer.pad_token == {"chatml": "<|endoftext|>", "llama3": "<|pad|>"}[family]
    assert tokenizer.pad_token_id not in {end_of_turn(tokenizer).token_id, tokenizer.eos_token_id}


def test_preparing_twice_adds_nothing(tokenizer: Any) -> None:
    size, pad = len(tokenizer), tokenizer.pad_token
    assert prepare_tokenizer(tokenizer) == []
    assert (len(tokenizer), tokenizer.pad_token) == (size, pad)


def test_a_saved_tokenizer_needs_nothing_more(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(tmp_path)
    assert prepare_tokenizer(again) == []
    assert again.pad_token_id == tokenizer.pad_token_id


def test_a_tokenizer_that_cuts_tags_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stairdata_training.tokens.missing_tags", lambda _: ["<|Output|>"])
    with pytest.raises(ModelError, match=r"<\|Output\|>.*fast tokenizer"):
        prepare_tokenizer(tokenizer)


def test_sft_text(tokenizer: Any, family: str) -> None:
    ids = sft_row(tokenizer, cot(WHOLE))
    trained = [token for token in ids["labels"] if token != IGNORED]
    assert tokenizer.decode(ids["input_ids"]) == HEAD[family] + WHOLE + END[family]
    assert tokenizer.decode(trained) == WHOLE + END[family]
    assert trained.count(end_of_turn(tokenizer).token_id) == 1
    assert ids["length"] == len(ids["input_ids"]) == len(ids["labels"])


def test_sft_ids_literally(chatml: Any) -> None:
    tokenizer = chatml
    ids = sft_row(tokenizer, cot("<|Output|>A<|/Output|>"))
    # fmt: off
    prompt = [
        1, 118, 124, 118, 119, 104, 112, 13, 69, 104, 35, 110, 108, 113, 103, 49, 2, 13,  # system: Be kind.
        1, 120, 118, 104, 117, 13, 107, 108, 2, 13,  # user: hi
        1, 100, 118, 118, 108, 118, 119, 100, 113, 119, 13,  # assistant
    ]
    # fmt: on
    assert ids["input_ids"] == [*prompt, 261, 68, 262, 2]
    assert ids["labels"] == [IGNORED] * len(prompt) + [261, 68, 262, 2]


def test_a_direct_answer_has_neither_steps_nor_tags(family: str) -> None:
    tokenizer = byte_tokenizer(family)
    assert prepare_tokenizer(tokenizer, with_tags=False) == ([] if family == "chatml" else [len(tokenizer) - 1])
    assert len(missing_tags(tokenizer)) == len(TAGS)
    ids = direct_row(tokenizer, cot(WHOLE) | {"output": "I can't. Sorry!"})
    assert tokenizer.decode(ids["input_ids"]) == HEAD[family] + "I can't. Sorry!" + END[family]
    trained = [token for token in ids["labels"] if token != IGNORED]
    assert tokenizer.decode(trained) == "I can't. Sorry!" + END[family]
    assert (ids["length"], ids["prefix_tokens"]) == (len(ids["labels"]), len(ids["labels"]) - len(trained))
    with pytest.raises(TrainingError, match="a control token"):
        direct_row(tokenizer, cot(WHOLE) | {"output": f"no{END[family]}"})


@pytest.mark.parametrize("terminal", [(False, False), (True, True), (False, True), (True, False)])
def test_dpo_text(tokenizer: Any, family: str, terminal: tuple[bool, bool]) -> None:
    sides = [STEP + (DONE if side else MORE) for side in terminal]
    if sides[0] == sides[1]:
        sides[1] = sides[1].replace("yes", "no").replace("cd", "ef")
    ids = dpo_row(tokenizer, pair(sides[0], sides[1], terminal=terminal, cut=len(STEP)))
    ends = [END[family] if side else "" for side in terminal]
    assert tokenizer.decode(ids["prompt_ids"]) == HEAD[family] + STEP
    assert tokenizer.decode(ids["chosen_ids"]) == sides[0][len(STEP) :] + ends[0]
    assert tokenizer.decode(ids["rejected_ids"]) == sides[1][len(STEP) :] + ends[1]


@pytest.mark.parametrize("terminal", [(False, False), (True, True), (False, True), (True, False)])
def test_prm_text(tokenizer: Any, family: str, terminal: tuple[bool, bool]) -> None:
    sides = [STEP + (DONE if side else MORE) for side in terminal]
    if sides[0] == sides[1]:
        sides[1] = sides[1].replace("yes", "no").replace("cd", "ef")
    ids = prm_row(tokenizer, pair(sides[0], sides[1], terminal=terminal, cut=0))
    ends = [END[family] if side else "" for side in terminal]
    assert tokenizer.decode(ids["chosen_ids"]) == HEAD[family] + sides[0] + ends[0]
    assert tokenizer.decode(ids["rejected_ids"]) == HEAD[family] + sides[1] + ends[1]
    assert ids["chosen_ids"] == prm_ids(tokenizer, "hi", sides[0], is_complete=terminal[0])


def test_a_step_that_ends_the_turn_without_a_closing_tag(tokenizer: Any, family: str) -> None:
    row = pair("I can't help.", STEP, terminal=(True, False), cut=0)
    ids = dpo_row(tokenizer, row)
    assert tokenizer.decode(ids["chosen_ids"]) == "I can't help." + END[family]
    assert tokenizer.decode(ids["rejected_ids"]) == STEP


def test_prefix_length_counts_code_points(tokenizer: Any, family: str) -> None:
    prefix = STEP.replace("ab", "ça 🙂")
    ids = dpo_row(tokenizer, pair(prefix + MORE, prefix + DONE, terminal=(False, True), cut=len(prefix)))
    assert tokenizer.decode(ids["prompt_ids"]) == HEAD[family] + prefix
    assert tokenizer.decode(ids["chosen_ids"]) == MORE


@pytest.mark.parametrize("make", [dpo_row, prm_row])
def test_equal_ids_are_refused_although_the_texts_differ(chatml: Any, make: Any) -> None:
    from tokenizers import normalizers

    chatml.backend_tokenizer.normalizer = normalizers.NFC()
    row = pair(STEP + "caf\u00e9", STEP + "cafe\u0301", terminal=(False, False), cut=len(STEP))
    with pytest.raises(TrainingError, match=r"same .* token ids"):
        make(chatml, row)


@pytest.mark.parametrize("make", [dpo_row, prm_row])
def test_end_of_turn_text_inside_a_step_is_refused(tokenizer: Any, family: str, make: Any) -> None:
    row = pair(STEP + END[family], STEP + MORE, terminal=(False, False), cut=0)
    with pytest.raises(TrainingError, match="stop in its middle"):
        make(tokenizer, row)


def test_an_sft_completion_with_end_of_turn_text_is_refused(tokenizer: Any, family: str) -> None:
    with pytest.raises(TrainingError, match="stop in its middle"):
        sft_row(tokenizer, cot(WHOLE + END[family]))


def test_a_prefix_that_is_not_shared_is_refused(tokenizer: Any) -> None:
    row = pair(STEP + MORE, STEP.replace("ab", "xy") + MORE, terminal=(False, False), cut=len(STEP))
    with pytest.raises(TrainingError, match="differ"):
        dpo_row(tokenizer, row)


def test_new_embeddings_leave_the_old_ones_alone(models: dict[str, Path], family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(str(models[family]), dtype=torch.float32)
    before = network.get_input_embeddings().weight.detach().clone()
    tokenizer = load_tokenizer(models[family])
    new = prepare_tokenizer(tokenizer)
    resize_embeddings(network, tokenizer, new)
    after = network.get_input_embeddings().weight.detach()
    assert after.shape[0] == -(-len(tokenizer) // 64) * 64
    assert torch.equal(after[len(tokenizer)], before.mean(0))
    assert torch.equal(after[: before.shape[0]], before)
    assert torch.unique(after[new], dim=0).shape[0] == len(new)
    head = network.get_output_embeddings().weight
    assert (head is network.get_input_embeddings().weight) == (family == "chatml")
    assert torch.isfinite(head).all()
