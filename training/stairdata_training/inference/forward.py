"""Forward passes without gradients over padded sequences: log-probabilities of answers, and rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class PaddedBatch(NamedTuple):
    """Sequences of one length, padded on the right; each tensor has the shape [rows, tokens]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    answer_mask: torch.Tensor
    """1 where a token belongs to the answer, whose log-probability is asked for."""


AnswerLogProbs = Callable[[PaddedBatch], list[float]]
"""Gives the log-probability, in nats, of each row's answer."""
Rewards = Callable[[PaddedBatch], list[float]]
RewardsAt = Callable[[PaddedBatch, Sequence[Sequence[int]]], list[list[float]]]
"""Gives the rewards of each row at positions of its own."""


def pad(sequences: Sequence[Sequence[int]], pad_id: int, prompt_lengths: Sequence[int] | None = None) -> PaddedBatch:
    """Make a batch; without lengths of prompts no token counts as part of an answer."""
    longest = max(map(len, sequences))
    starts = prompt_lengths if prompt_lengths is not None else [longest] * len(sequences)
    positions = torch.arange(longest)
    lengths = torch.tensor([len(ids) for ids in sequences])[:, None]
    is_text = positions < lengths
    return PaddedBatch(
        torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids in sequences]),
        is_text.long(),
        (is_text & (positions >= torch.tensor(starts)[:, None])).long(),
    )


def answer_log_probs(network: Any, *, bf16: bool = False) -> AnswerLogProbs:
    """Return a function that scores answers by a language model, wherever its weights lie.

    Args:
        network: a causal language model; with adapters, as they are switched at the time of the call.
        bf16: compute in bf16, from weights of whatever type.
    """

    def log_probs(batch: PaddedBatch) -> list[float]:
        labels, mask = batch.input_ids[:, 1:], batch.answer_mask[:, 1:].bool()
        positions = mask.any(0).nonzero().flatten()  # logits of prompts would take most of the memory
        with evaluating(network, bf16=bf16) as device:
            logits = network(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                logits_to_keep=positions.to(device),
                use_cache=False,
            ).logits
            kept, wanted = mask[:, positions].to(device), labels[:, positions].to(device)
            return [  # one row after the other: 32-bit logits of a whole batch are large
                -float(
                    torch.nn.functional.cross_entropy(row[is_kept].float(), target[is_kept], reduction="none")
                    .double()
                    .sum()
                )
                for row, is_kept, target in zip(logits, kept, wanted, strict=True)
            ]

    return log_probs


def base_log_probs(network: Any, *, bf16: bool = False) -> AnswerLogProbs:
    """Return the same for the model below the adapters of a PEFT model, which are switched off meanwhile."""
    through_adapters = answer_log_probs(network, bf16=bf16)

    def log_probs(batch: PaddedBatch) -> list[float]:
        with network.disable_adapter():
            return through_adapters(batch)

    return log_probs


def rewards(network: Any, *, bf16: bool = False) -> Rewards:
    """Return a function that scores whole sequences by a reward model, which finds the last token by its pad token."""

    def scores(batch: PaddedBatch) -> list[float]:
        with evaluating(network, bf16=bf16) as device:
            logits = network(
                input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
            ).logits
        found: list[float] = logits.squeeze(-1).float().tolist()
        return found

    return scores


def rewards_at(network: Any) -> RewardsAt:
    """Return a function that scores sequences by a reward model at any of their tokens.

    The model has to be a causal one with a linear head, `score`, on its last hidden states, as those are that
    `load_reward_model` makes of language models. Padding on the right changes nothing in front of it.
    """

    def scores(batch: PaddedBatch, positions: Sequence[Sequence[int]]) -> list[list[float]]:
        rows = torch.tensor([row for row, places in enumerate(positions) for _ in places])
        columns = torch.tensor([place for places in positions for place in places])
        with evaluating(network, bf16=False) as device:
            hidden = network.base_model(
                input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
            ).last_hidden_state
            found = network.score(hidden[rows.to(device), columns.to(device)]).squeeze(-1).float().tolist()
        flat = iter(found)
        return [[next(flat) for _ in places] for places in positions]

    return scores


@contextmanager
def evaluating(network: Any, *, bf16: bool) -> Iterator[torch.device]:
    """Switch dropout and gradients off, and compute in bf16 where asked for; yields the model's device."""
    device: torch.device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        # no_grad, since FSDP2 can't gather weights in inference mode
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            yield device
    finally:
        network.train(was_training)
