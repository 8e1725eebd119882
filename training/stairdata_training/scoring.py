"""Scores of whole and partial answers by a process reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stairdata_schemas.rendering import check_model_folder, load_tokenizer
from stairdata_training.inference.batches import batches_by_length
from stairdata_training.inference.forward import pad, rewards
from stairdata_training.models import load_reward_model
from stairdata_training.running import quiet
from stairdata_training.tokens import prm_ids


class PrmScorer:
    """A loaded reward model; `score` gives r(x, z) for prompt x and (partial) answer z, higher is better.

    Weights are computed in 32 bits on a CPU, so that an answer has the same score alone and in a batch; on a
    GPU in bf16, which agrees to about two digits.
    """

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self._network, self._tokenizer = network, tokenizer

    @classmethod
    def load(cls, path: str | Path) -> PrmScorer:
        """Load a reward model from a folder or the Hub.

        Raises:
            ModelError: there is none.
        """
        import torch

        if Path(path).exists():
            check_model_folder(Path(path))
        with quiet():
            tokenizer, network = load_tokenizer(path), load_reward_model(path)
        if torch.cuda.is_available():
            network = network.to("cuda", torch.bfloat16)
        network.config.pad_token_id = tokenizer.pad_token_id  # the model finds the last token by it
        return cls(network.eval(), tokenizer)

    def score(self, items: Sequence[tuple[str, str, bool]], batch_size: int = 8) -> list[float]:
        """Score items of prompt, assistant text and whether the text is complete.

        A complete text is read with its end-of-turn token, a partial one without, as in training.
        """
        ids = [prm_ids(self._tokenizer, prompt, text, is_complete=complete) for prompt, text, complete in items]
        forward, scores = rewards(self._network), [0.0] * len(ids)
        for batch in batches_by_length([len(sequence) for sequence in ids], batch_size):
            padded = pad([ids[index] for index in batch], self._tokenizer.pad_token_id)
            for index, value in zip(batch, forward(padded), strict=True):
                scores[index] = value
        return scores
