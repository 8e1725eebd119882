"""Tokenizers as the model families have them, small enough to be made here."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from stairdata_schemas.grammar import TAGS

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = "{% for m in messages %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


def template(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def fast(
    backend: Any, template: str, special: list[str], plain: tuple[str, ...] = (), *, tags: bool = True, **roles: str
) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, *(TAGS if tags else ())]})
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer.chat_template = template
    return tokenizer


def byte_level(special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(["user assistant\n\nthe answer is <|im_end|> <|im_start|> here\n"] * 9, trainer)
    return backend


def chatml() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return fast(byte_level(special), CHATML, special, bos_token="<|im_start|>", eos_token="<|im_end|>")


def chatml_not_special() -> Any:
    """As in models that were taught ChatML later: its tokens were added without a mark."""
    return fast(byte_level(["<s>"]), CHATML, ["<s>"], ("<|im_start|>", "<|im_end|>"), eos_token="<s>")


def llama3() -> Any:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return fast(byte_level(special), template("llama3"), special, bos_token=special[0], eos_token=special[1])


def qwen3() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    return fast(byte_level(special), template("qwen3"), special, plain, eos_token="<|im_end|>")


def gemma() -> Any:
    """SentencePiece's Unigram with Metaspace, and control tokens that stand in the vocabulary itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [(token, 0.0) for token in ("<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")]
    pieces += [("▁", -2.0), ("\n", -2.0), *((chr(code), -3.0) for code in range(33, 127)), ("user", -1.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    special = [token for token, _ in pieces[:5]]
    roles: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return fast(backend, template("gemma"), special, **roles)


def llama2() -> Any:
    """BPE with an unknown token by name, and a template that marks turns by plain words."""
    from tokenizers import Tokenizer, models, normalizers

    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, "▁", "\n", *map(chr, range(33, 127))])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    return fast(backend, LLAMA2, special, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama2_legacy() -> Any:
    """As llama2, and a space before each text and behind each special token."""
    from tokenizers import normalizers

    tokenizer = llama2()
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(marks)
    return tokenizer


def metaspace(prepend_scheme: str) -> Any:
    """BPE with Metaspace, one token for each character or byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", *map(chr, range(33, 127)), "▁a", "ab", "▁ab"]
    vocabulary = {token: index for index, token in enumerate([*special, *bytes_, *words])}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    marks = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(marks)
    return fast(backend, LLAMA2, special, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace_first() -> Any:
    return metaspace("first")


def metaspace_always() -> Any:
    return metaspace("always")


def tags_that_take_white_space() -> Any:
    """White space behind a tag is part of the tag."""
    from tokenizers import AddedToken

    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = fast(byte_level(special), CHATML, special, bos_token="<|im_start|>", eos_token="<|im_end|>", tags=False)
    tokenizer.add_tokens([AddedToken(tag, special=True, normalized=False, rstrip=True) for tag in TAGS])
    return tokenizer


_MAKE = (
    chatml,
    chatml_not_special,
    llama3,
    qwen3,
    gemma,
    llama2,
    llama2_legacy,
    metaspace_first,
    metaspace_always,
    tags_that_take_white_space,
)
FAMILIES = {make.__name__: make() for make in _MAKE}
