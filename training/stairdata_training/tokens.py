"""Token work that the three trainings share: the tags, the pad token, and the ids of each row.

Every id the trainers see is made here through `stairdata_schemas.rendering`, because TRL's own preparation
ends each plain text with EOS and cuts long ones in silence. End-of-turn follows terminal text alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from stairdata_schemas.errors import ModelError, TrainingError, quote
from stairdata_schemas.rendering import (
    Conversation,
    RenderedPrompt,
    encode_prompt,
    end_of_turn,
    missing_tags,
    render_prompt,
)
from stairdata_schemas.templating.control_tokens import find_outside_grammar

PAD_TOKEN = "<|pad|>"  # noqa: S105
IGNORED = -100  # label that the loss skips
_NOISE = 0.1
_VOCABULARY_MULTIPLE = 64

RowMapping = Mapping[str, Any]


class RowError(TrainingError):
    """A row that would teach something wrong.

    Args:
        row: the column that names it, and its value.
        message: what is wrong with it, and what to do.
    """

    def __init__(self, row: str, message: str) -> None:
        super().__init__(f"{row}: {message}")
        self.row = row

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.row, str(self).removeprefix(f"{self.row}: "))


class Lengths(TypedDict):
    """What is known of the length of a row, in tokens."""

    length: int
    """Of its longest sequence."""
    tokens: int
    """What the model reads of it."""
    prefix_tokens: int
    """How many of these are prompt, or steps that both sides of a pair share."""


class SftIds(Lengths):
    """One training sequence; `labels` are `IGNORED` on the prompt."""

    input_ids: list[int]
    labels: list[int]


class DpoIds(Lengths):
    """A pair: the prompt with the steps both sides share, and what follows on each side."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class PrmIds(Lengths):
    """A pair of whole sequences, prompt included."""

    chosen_ids: list[int]
    rejected_ids: list[int]


def prepare_tokenizer(tokenizer: Any, *, with_tags: bool = True) -> list[int]:
    """Add what is missing: the four tags as special tokens, and a pad token of its own.

    Args:
        tokenizer: is changed.
        with_tags: false adds a pad token alone.

    Returns:
        The ids that are new, for which a model has no trained embedding.

    Raises:
        ModelError: a tag is not one single id afterwards.
    """
    known = len(tokenizer)
    absent = missing_tags(tokenizer) if with_tags else []
    if absent:
        tokenizer.add_tokens(absent, special_tokens=True)
    broken = missing_tags(tokenizer) if with_tags else []
    if broken:
        raise ModelError(
            f"the tokenizer cuts {', '.join(map(quote, broken))} into several tokens although it was added as a "
            "special one; use the model's fast tokenizer (tokenizer.json)"
        )
    _set_pad_token(tokenizer)
    return list(range(known, len(tokenizer)))


def _set_pad_token(tokenizer: Any) -> None:
    """Make sure that padding can't be taken for the end of a turn.

    SmolLM2 pads with its end-of-turn token. A reward model that reads the last token that isn't padding would
    then look in front of the end-of-turn, and a collator that masks padding would never train it.
    """
    ends = {end_of_turn(tokenizer).token_id, tokenizer.eos_token_id}
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in ends:
        return
    taken = {*ends, tokenizer.bos_token_id}
    if tokenizer.unk_token is not None and tokenizer.unk_token_id not in taken:
        tokenizer.pad_token = tokenizer.unk_token  # in the vocabulary already, and not in rendered text
    else:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})


def require_tags(tokenizer: Any, model: str | Path) -> None:
    """Check that a model knows the grammar's tags: DPO and PRM would train new ones on too few tokens.

    Raises:
        ModelError: a tag is not one single id.
    """
    missing = missing_tags(tokenizer)
    if missing:
        raise ModelError(
            f"the tokenizer of {str(model)!r} has no single token for {', '.join(missing)}; run `stairdata train sft` "
            "first and start from its output"
        )


def padded_vocabulary(tokens: int) -> int:
    """Return how many rows the embeddings get for a tokenizer of that many tokens."""
    return -(-tokens // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


def resize_embeddings(model: Any, tokenizer: Any, new_ids: list[int]) -> None:
    """Give new tokens embeddings (and rows of the head): the mean of the words in their names, and some noise.

    The usual mean over the whole vocabulary does not work here: SmolLM2's rare tokens all lie around that mean,
    so that after 16 steps a tag had a log-probability of -10, and -0.4 when it began at its words. The noise
    keeps opening and closing tags apart.

    The number of rows becomes a multiple of 64, the width of a tensor core's tile; rows beyond the tokenizer stand at
    that mean, where nothing makes a model write them.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]  # may be more than the tokenizer has, for alignment
    new = sorted({*new_ids, *range(rows, len(tokenizer))})
    if not new:
        return
    if len(tokenizer) > rows:
        model.resize_token_embeddings(padded_vocabulary(len(tokenizer)), mean_resizing=False)
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    generator = torch.Generator().manual_seed(0)  # the same start whatever the training's seed
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in layers}.values():  # tied weights once
            weight[max(rows, len(tokenizer)) :] = weight[: new[0]].mean(0)
            spread = weight[: new[0]].std(0)
            for token in new:
                noise = torch.randn(weight.shape[1], generator=generator).to(weight.device)
                weight[token] = weight[_word_ids(tokenizer, token)].mean(0) + _NOISE * spread * noise


def _word_ids(tokenizer: Any, token: int) -> list[int]:
    name = tokenizer.convert_ids_to_tokens(token)
    ids: list[int] = tokenizer(re.sub(r"[^\w/]+|_", " ", name).strip(), add_special_tokens=False)["input_ids"]
    return ids


def sft_row(tokenizer: Any, row: RowMapping) -> SftIds:
    """Make the ids of a `structured_cot` row; an SFT completion always ends the turn.

    Raises:
        RowError: a control token inside.
    """
    return _sequence(tokenizer, row, row["completion"])


def direct_row(tokenizer: Any, row: RowMapping) -> SftIds:
    """Make the ids of a `structured_cot` row's final answer alone, an ordinary answer in the model's chat template.

    Raises:
        RowError: a control token inside.
    """
    return _sequence(tokenizer, row, row["output"])


def _sequence(tokenizer: Any, row: RowMapping, text: str) -> SftIds:
    said = render_prompt(tokenizer, row["prompt"])
    prompt, (completion,) = said.pieces(text)
    answer = _answer(said, completion, text, is_terminal=True, row=row)
    length = len(prompt) + len(answer)
    return {
        "input_ids": prompt + answer,
        "labels": [IGNORED] * len(prompt) + answer,
        "length": length,
        "tokens": length,
        "prefix_tokens": len(prompt),
    }


def dpo_row(tokenizer: Any, row: RowMapping) -> DpoIds:
    """Make the ids of a `preference_pairs` row: the shared prefix counts as prompt, only the rest is trained.

    Raises:
        RowError: a control token inside, or two sides of the same ids.
    """
    cut = row["prefix_length"]
    prefix = row["chosen"][:cut]
    if row["rejected"][:cut] != prefix:
        raise RowError(
            row_name(row), f"the first {cut} characters of chosen and rejected differ; build the pairs again"
        )
    said = render_prompt(tokenizer, row["prompt"]).plus(prefix)
    prompt, sides = said.pieces(row["chosen"][cut:], row["rejected"][cut:])
    chosen, rejected = (
        _answer(said, ids, row[side], is_terminal=row[f"{side}_is_terminal"], row=row)
        for side, ids in zip(("chosen", "rejected"), sides, strict=True)
    )
    _check_pair(row, chosen, rejected)
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "length": len(prompt) + max(len(chosen), len(rejected)),
        "tokens": 2 * len(prompt) + len(chosen) + len(rejected),
        "prefix_tokens": 2 * len(prompt),
    }


def prm_row(tokenizer: Any, row: RowMapping) -> PrmIds:
    """Make the ids of a `prm_pairs` row: prompt and whole text on each side.

    Raises:
        RowError: a control token inside, or two sides of the same ids.
    """
    said = render_prompt(tokenizer, row["prompt"])
    prompt, sides = said.pieces(row["chosen"], row["rejected"])
    chosen, rejected = (
        prompt + _answer(said, ids, row[side], is_terminal=row[f"{side}_is_terminal"], row=row)
        for side, ids in zip(("chosen", "rejected"), sides, strict=True)
    )
    _check_pair(row, chosen, rejected)
    return {
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "length": max(len(chosen), len(rejected)),
        "tokens": len(chosen) + len(rejected),
        "prefix_tokens": 2 * len(prompt),
    }


def prm_ids(tokenizer: Any, prompt: str | Conversation, text: str, *, is_complete: bool) -> list[int]:
    """Return the ids by which a reward model reads (a part of) an answer, the same as in its training."""
    ids = encode_prompt(tokenizer, prompt, text)
    return [*ids, end_of_turn(tokenizer).token_id] if is_complete else ids


def row_name(row: RowMapping) -> str:
    """Return how messages and training.json name a row."""
    name = "pair_id" if "pair_id" in row else "prompt_id"
    return f"row {name}={row.get(name)!r}"


def _answer(said: RenderedPrompt, ids: list[int], text: str, *, is_terminal: bool, row: RowMapping) -> list[int]:
    """Put exactly one end-of-turn behind the ids of assistant text where it `is_terminal`, none elsewhere."""
    end = said.end_of_turn
    found = find_outside_grammar(said.tokenizer, text) or ([end.text] if end.token_id in ids else [])
    if found:
        harm = "stop in its middle" if end.text in found else "write it inside an answer"
        raise RowError(
            row_name(row),
            f"the text contains {quote(found[0])}, a control token, so the model would learn to {harm}; store steps "
            "without control tokens, or leave such rows out with bad_rows: drop",
        )
    return [*ids, end.token_id] if is_terminal else ids


def _check_pair(row: RowMapping, chosen: list[int], rejected: list[int]) -> None:
    if chosen == rejected:
        raise RowError(
            row_name(row),
            f"chosen and rejected are the same {len(chosen)} token ids, so there is nothing to learn; leave the pair "
            "out, or all such with bad_rows: drop",
        )
    if not chosen or not rejected:
        raise RowError(row_name(row), "one side has no tokens after the shared prefix; build the pairs again")
