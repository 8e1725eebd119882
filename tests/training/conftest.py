from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from stairdata_schemas import identity
from stairdata_schemas.grammar import Step, render

# SmolLM2's own template; its tokenizer pads with the end-of-turn token
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
ROLES = {
    "chatml": {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    },
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
}


def template(family: str) -> str:
    if family == "chatml":
        return CHATML
    return (files("trl") / "chat_templates" / "llama3.jinja").read_text(encoding="utf-8")


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def byte_tokenizer(family: str) -> Any:
    """A tokenizer of single bytes: the special tokens come first, then byte b has id `len(special) + b`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL[family], *byte_characters()])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES[family])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[family]})
    tokenizer.chat_template = template(family)
    return tokenizer


def tiny_model(folder: Path, family: str, *, tags: bool = False, heads: int = 4) -> Path:
    """A tiny random model; with tags like one that SFT has been through."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = prepared_tokenizer(family) if tags else byte_tokenizer(family)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        tie_word_embeddings=family == "chatml",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models of two template families."""
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_model(root / family, family) for family in SPECIAL}


@pytest.fixture(scope="session")
def actors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with the grammar's tags, from which DPO and PRM can start."""
    root = tmp_path_factory.mktemp("actors")
    return {family: tiny_model(root / family, family, tags=True) for family in SPECIAL}


@pytest.fixture(scope="session")
def prms(actors: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny reward models with random heads, whose scores tell texts apart."""
    root = tmp_path_factory.mktemp("prms")
    return {family: tiny_prm(actors[family], root / family) for family in SPECIAL}


def tiny_prm(actor: Path, folder: Path) -> Path:
    """A reward model with the weights of a language model and a random head."""
    import torch
    from transformers import AutoTokenizer

    from stairdata_training.models import load_reward_model

    network = load_reward_model(actor, head_seed=1)
    torch.nn.init.normal_(network.score.weight, std=0.3)
    network.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(actor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def starts(models: dict[str, Path], actors: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """By method and family, the tiny models that a training can start from."""
    return {"sft": models, "dpo": actors, "prm": actors}


@pytest.fixture(params=["chatml", "llama3"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(family: str) -> Any:
    return prepared_tokenizer(family)


@pytest.fixture
def chatml() -> Any:
    return prepared_tokenizer("chatml")


def prepared_tokenizer(family: str) -> Any:
    from stairdata_training.tokens import prepare_tokenizer

    made = byte_tokenizer(family)
    prepare_tokenizer(made)
    return made


def sft_row(number: int) -> dict[str, Any]:
    prompt = f"hi {number}"
    steps = [Step("Think:", "ab" * (1 + number % 3)), Step("Check:", "ok")]
    return {
        "prompt_id": identity.prompt_id(prompt),
        "prompt": prompt,
        "task": "helpfulness",
        "steps": [{"title": step.title, "body": step.body} for step in steps],
        "output": f"yes {number}",
        "completion": render(steps, f"yes {number}"),
    }


def pair_row(number: int, **changes: Any) -> dict[str, Any]:
    """A pair under a shared first step; every other one compares terminal steps."""
    prompt = f"hi {number}"
    prefix = "<|Reasoning_step|>\nTitle: A:\nab\n<|/Reasoning_step|>"
    terminal = number % 2 == 1
    last = (
        "\n\n<|Output|>\nFinal Answer:\n{}\n<|/Output|>"
        if terminal
        else "\n\n<|Reasoning_step|>\nTitle: B:\n{}\n<|/Reasoning_step|>"
    )
    row = {
        "pair_id": identity.pair_id("t", number, number + 1, "step"),
        "prompt_id": identity.prompt_id(prompt),
        "prompt": prompt,
        "chosen": prefix + last.format("good"),
        "rejected": prefix + last.format("bad " * (1 + number % 3)),
        "prefix_length": len(prefix),
        "chosen_is_terminal": terminal,
        "rejected_is_terminal": terminal,
    }
    return row | changes


@pytest.fixture
def sft_rows() -> list[dict[str, Any]]:
    return [sft_row(number) for number in range(16)]


@pytest.fixture
def pair_rows() -> list[dict[str, Any]]:
    return [pair_row(number) for number in range(16)]
