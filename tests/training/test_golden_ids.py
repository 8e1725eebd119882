"""Golden ids of a row of each kind, for each family of tokenizers: what training reads, to the token."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, NamedTuple

import pytest

from stairdata_training.tokens import IGNORED, dpo_row, prm_ids, prm_row, sft_row
from tests.schemas.tokenizers import FAMILIES
from tests.training.conftest import byte_characters, prepared_tokenizer

STEP = "<|Reasoning_step|>\nA\n<|/Reasoning_step|>"
NEXT = "\n\n<|Reasoning_step|>\nB\n<|/Reasoning_step|>"
OUTPUT = "\n\n<|Output|>\na b\n<|/Output|>"


def qwen() -> Any:
    """Qwen's template and control tokens over single bytes: byte b has id 3 + b."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from stairdata_training.tokens import prepare_tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *byte_characters()])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    prepare_tokenizer(tokenizer)
    return tokenizer


class Golden(NamedTuple):
    """Ids of the prompt, of a first step, and of the two ways in which it goes on."""

    tokenizer: Any
    prompt: list[int]
    step: list[int]
    output: list[int]
    """With end-of-turn."""
    more: list[int]


# fmt: off
def golden_chatml() -> Golden:
    prompt = [
        1, 118, 124, 118, 119, 104, 112, 13, 69, 104, 35, 110, 108, 113, 103, 49, 2, 13,  # system: Be kind.
        1, 120, 118, 104, 117, 13, 107, 108, 2, 13,  # user: hi
        1, 100, 118, 118, 108, 118, 119, 100, 113, 119, 13,  # assistant
    ]
    step, output = [259, 13, 68, 13, 260], [13, 13, 261, 13, 100, 35, 101, 13, 262, 2]
    return Golden(prepared_tokenizer("chatml"), prompt, step, output, [13, 13, 259, 13, 69, 13, 260])


def golden_llama3() -> Golden:
    prompt = [
        0, 2, 122, 120, 106, 119, 3, 15, 15, 109, 110, 4,  # user: hi
        2, 102, 120, 120, 110, 120, 121, 102, 115, 121, 3, 15, 15,  # assistant
    ]
    step, output = [261, 15, 70, 15, 262], [15, 15, 263, 15, 102, 37, 103, 15, 264, 4]
    return Golden(prepared_tokenizer("llama3"), prompt, step, output, [15, 15, 261, 15, 71, 15, 262])


def golden_qwen() -> Golden:
    prompt = [
        1, 120, 118, 104, 117, 13, 107, 108, 2, 13,  # user: hi
        1, 100, 118, 118, 108, 118, 119, 100, 113, 119, 13,  # assistant
    ]
    step, output = [259, 13, 68, 13, 260], [13, 13, 261, 13, 100, 35, 101, 13, 262, 2]
    return Golden(qwen(), prompt, step, output, [13, 13, 259, 13, 69, 13, 260])


def golden_metaspace() -> Golden:
    """A line break is the byte 0x0A (13), a space is 259; no step begins with one."""
    prompt = [
        1, 318, 300, 305, 310, 311, 320, 259, 331, 332, 259,  # <s>[INST] hi
        318, 274, 300, 305, 310, 311, 320,  # [/INST]
    ]
    step, output = [357, 13, 292, 13, 358], [13, 13, 359, 13, 324, 259, 325, 13, 360, 2]
    return Golden(FAMILIES["metaspace_first"], prompt, step, output, [13, 13, 357, 13, 293, 13, 358])
# fmt: on


@pytest.fixture(params=[golden_chatml, golden_llama3, golden_qwen, golden_metaspace])
def golden(request: pytest.FixtureRequest) -> Golden:
    made: Golden = request.param()
    return made


PAIR = {
    "pair_id": "0123456789abcdef",
    "prompt": "hi",
    "chosen": STEP + OUTPUT,
    "rejected": STEP + NEXT,
    "prefix_length": len(STEP),
    "chosen_is_terminal": True,
    "rejected_is_terminal": False,
}


def test_sft(golden: Golden) -> None:
    row = sft_row(golden.tokenizer, {"prompt": "hi", "completion": STEP + OUTPUT})
    answer = golden.step + golden.output
    assert row["input_ids"] == golden.prompt + answer
    assert row["labels"] == [IGNORED] * len(golden.prompt) + answer


def test_dpo(golden: Golden) -> None:
    row = dpo_row(golden.tokenizer, PAIR)
    assert row["prompt_ids"] == golden.prompt + golden.step
    assert (row["chosen_ids"], row["rejected_ids"]) == (golden.output, golden.more)
    assert row["length"] == len(golden.prompt + golden.step + golden.output)


def test_prm(golden: Golden) -> None:
    row = prm_row(golden.tokenizer, PAIR)
    assert row["chosen_ids"] == golden.prompt + golden.step + golden.output
    assert row["rejected_ids"] == golden.prompt + golden.step + golden.more
    assert row["chosen_ids"] == prm_ids(golden.tokenizer, "hi", STEP + OUTPUT, is_complete=True)
    assert row["rejected_ids"] == prm_ids(golden.tokenizer, "hi", STEP + NEXT, is_complete=False)


def test_a_token_over_the_end_of_the_prefix_is_trained() -> None:
    """`▁a` and `b` are one token of the chosen side, so the shared prefix ends before it on both sides."""
    tokenizer = FAMILIES["metaspace_first"]
    pair = PAIR | {"chosen": "x ab", "rejected": "x ac", "prefix_length": 3}
    row = dpo_row(tokenizer, pair)
    tokens = [tokenizer.convert_ids_to_tokens(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    assert [tokens[0][-2:], *tokens[1:]] == [["]", "x"], ["▁ab", "</s>"], ["▁a", "c"]]
