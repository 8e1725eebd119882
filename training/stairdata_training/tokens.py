"""Token work that the three trainings share: the tags, the pad token, and the ids of each row.

Every id the trainers see is made here through `stairdata_schemas.rendering`, because TRL's own preparation
ends each plain text with EOS and cuts long ones in silence. End-of-turn follows terminal text alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict

from stairdata_schemas.errors import ModelError, TrainingError, quote
from stairdata_schemas.rendering import encode_prompt, end_of_turn, missing_tags, render_prompt

PAD_TOKEN = "<|pad|>"  # noqa: S105
IGNORED = -100  # label that the loss skips
_NOISE = 0.1

RowMapping = Mapping[str, Any]


class SftIds(TypedDict):
    """One training sequence; `labels` are `IGNORED` on the prompt."""

    input_ids: list[int]
    labels: list[int]
    length: int


class DpoIds(TypedDict):
    """A pair: the prompt with the steps both sides share, and what follows on each side."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    length: int


class PrmIds(TypedDict):
    """A pair of whole sequences, prompt included."""

    chosen_ids: list[int]
    rejected_ids: list[int]
    length: int


def prepare_tokenizer(tokenizer: Any) -> list[int]:
    """Add what is missing: the four tags as special tokens, and a pad token of its own.

    Returns:
        The ids that are new, for which a model has no trained embedding.

    Raises:
        ModelError: a tag is not one single id afterwards.
    """
    known = len(tokenizer)
    absent = missing_tags(tokenizer)
    if absent:
        tokenizer.add_tokens(absent, special_tokens=True)
    broken = missing_tags(tokenizer)
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


def resize_embeddings(model: Any, tokenizer: Any, new_ids: list[int]) -> None:
    """Give new tokens embeddings (and rows of the head): the mean of the words in their names, and some noise.

    The usual mean over the whole vocabulary does not work here: SmolLM2's rare tokens all lie around that mean,
    so that after 16 steps a tag had a log-probability of -10, and -0.4 when it began at its words. The noise
    keeps opening and closing tags apart.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]  # may be more than the tokenizer has, for alignment
    new = sorted({*new_ids, *range(rows, len(tokenizer))})
    if not new:
        return
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    generator = torch.Generator().manual_seed(0)  # the same start whatever the training's seed
    with torch.no_grad():
        for weight in {id(layer.weight): layer.weight for layer in layers}.values():  # tied weights once
            spread = weight[: new[0]].std(0)
            for token in new:
                noise = torch.randn(weight.shape[1], generator=generator).to(weight.device)
                weight[token] = weight[_word_ids(tokenizer, token)].mean(0) + _NOISE * spread * noise


def _word_ids(tokenizer: Any, token: int) -> list[int]:
    name = tokenizer.convert_ids_to_tokens(token)
    ids: list[int] = tokenizer(re.sub(r"[^\w/]+|_", " ", name).strip(), add_special_tokens=False)["input_ids"]
    return ids


def sft_row(tokenizer: Any, row: RowMapping, max_length: int) -> SftIds:
    """Make the ids of a `structured_cot` row; an SFT completion always ends the turn.

    Raises:
        TrainingError: too long, or with end-of-turn text inside.
    """
    where = _where(row)
    prompt, (completion,) = render_prompt(tokenizer, row["prompt"]).pieces(row["completion"])
    answer = _answer(tokenizer, completion, is_terminal=True, where=where)
    _check_length(where, len(prompt) + len(answer), max_length)
    return {
        "input_ids": prompt + answer,
        "labels": [IGNORED] * len(prompt) + answer,
        "length": len(prompt) + len(answer),
    }


def dpo_row(tokenizer: Any, row: RowMapping, max_length: int) -> DpoIds:
    """Make the ids of a `preference_pairs` row: the shared prefix counts as prompt, only the rest is trained.

    Raises:
        TrainingError: too long, with end-of-turn text inside, or with two sides of the same ids.
    """
    where, cut = _where(row), row["prefix_length"]
    prefix = row["chosen"][:cut]
    if row["rejected"][:cut] != prefix:
        raise TrainingError(f"{where}: the first {cut} characters of chosen and rejected differ; build the pairs again")
    said = render_prompt(tokenizer, row["prompt"]).plus(prefix)
    prompt, sides = said.pieces(row["chosen"][cut:], row["rejected"][cut:])
    chosen, rejected = (
        _answer(tokenizer, ids, is_terminal=row[f"{side}_is_terminal"], where=where)
        for side, ids in zip(("chosen", "rejected"), sides, strict=True)
    )
    _check_pair(where, chosen, rejected)
    length = len(prompt) + max(len(chosen), len(rejected))
    _check_length(where, length, max_length)
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "length": length}


def prm_row(tokenizer: Any, row: RowMapping, max_length: int) -> PrmIds:
    """Make the ids of a `prm_pairs` row: prompt and whole text on each side.

    Raises:
        TrainingError: too long, with end-of-turn text inside, or with two sides of the same ids.
    """
    where = _where(row)
    prompt, sides = render_prompt(tokenizer, row["prompt"]).pieces(row["chosen"], row["rejected"])
    chosen, rejected = (
        prompt + _answer(tokenizer, ids, is_terminal=row[f"{side}_is_terminal"], where=where)
        for side, ids in zip(("chosen", "rejected"), sides, strict=True)
    )
    _check_pair(where, chosen, rejected)
    length = max(len(chosen), len(rejected))
    _check_length(where, length, max_length)
    return {"chosen_ids": chosen, "rejected_ids": rejected, "length": length}


def prm_ids(tokenizer: Any, prompt: str, text: str, *, is_complete: bool) -> list[int]:
    """Return the ids by which a reward model reads (a part of) an answer, the same as in its training."""
    ids = encode_prompt(tokenizer, prompt, text)
    return [*ids, end_of_turn(tokenizer).token_id] if is_complete else ids


def _answer(tokenizer: Any, ids: list[int], *, is_terminal: bool, where: str) -> list[int]:
    """Put exactly one end-of-turn behind the ids of assistant text where it `is_terminal`, none elsewhere."""
    end = end_of_turn(tokenizer)
    ids = [*ids, end.token_id] if is_terminal else ids
    if ids.count(end.token_id) != int(is_terminal):
        raise TrainingError(
            f"{where}: the text contains {quote(end.text)}, so the model would learn to stop in its middle; "
            "store steps without end-of-turn text"
        )
    return ids


def _check_length(where: str, length: int, max_length: int) -> None:
    if length > max_length:
        raise TrainingError(
            f"{where} has {length} tokens, prompt included; max_length is {max_length}. Nothing is cut: raise "
            "max_length, or build the artifact with fewer tokens per row"
        )


def _check_pair(where: str, chosen: list[int], rejected: list[int]) -> None:
    if chosen == rejected:
        raise TrainingError(
            f"{where}: chosen and rejected are the same {len(chosen)} token ids, so there is nothing to learn; "
            "leave the pair out"
        )
    if not chosen or not rejected:
        raise TrainingError(f"{where}: one side has no tokens after the shared prefix; build the pairs again")


def _where(row: RowMapping) -> str:
    name = "pair_id" if "pair_id" in row else "prompt_id"
    return f"row {name}={row.get(name)!r}"
