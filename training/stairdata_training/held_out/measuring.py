"""Measures of a finished model folder, as it lies on disk and will be served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stairdata_schemas.errors import TrainingError
from stairdata_schemas.rendering import load_tokenizer
from stairdata_training.config import DpoConfig, TrainingConfig
from stairdata_training.held_out.dpo import measure_dpo
from stairdata_training.held_out.prm import measure_prm
from stairdata_training.inference.forward import AnswerLogProbs, PaddedBatch, answer_log_probs, rewards
from stairdata_training.models import load_causal_model, load_reward_model, uses_bf16
from stairdata_training.tokens import RowError, RowMapping, dpo_row, prm_row

if TYPE_CHECKING:
    from datasets import Dataset

MEASURED = ("dpo", "prm")
"""The methods that have measures on held-out pairs."""


def measure_folder(
    method: str, folder: Path, start: str | Path, rows: Dataset, config: TrainingConfig
) -> Mapping[str, Any]:
    """Measure a trained model on held-out pairs.

    Args:
        method: dpo or prm.
        folder: the finished model.
        start: the model that the training started from; the reference of DPO.
        rows: pairs whose prompts are not those of the training.
        config: of the training.

    Returns:
        `DpoMeasures` or `PrmMeasures` as JSON values, with `left_out`: rows too long, or of no use.

    Raises:
        TrainingError: not one pair can be measured.
        ModelError: a model can't be loaded.
    """
    tokenizer = load_tokenizer(folder)
    kept, ids, left_out = _ids(dpo_row if method == "dpo" else prm_row, tokenizer, rows, config.max_length)
    if not kept:
        raise TrainingError(f"not one of {left_out} held-out pairs can be measured: all are too long or of no use")
    bf16, pad_id = uses_bf16(config.precision), tokenizer.pad_token_id
    if method == "prm":
        network = _placed(load_reward_model(folder))
        network.config.pad_token_id = pad_id
        found = asdict(measure_prm(rewards(network, bf16=bf16), kept, ids, pad_id=pad_id, batch_size=config.batch_size))
    else:
        assert isinstance(config, DpoConfig)
        models = _OneAtATime(bf16=bf16)
        found = asdict(
            measure_dpo(
                models.of(folder), models.of(start), kept, ids, pad_id=pad_id, beta=config.beta,
                batch_size=config.batch_size,
            )
        )  # fmt: skip
    return found | {"left_out": left_out}


class _OneAtATime:
    """Models that are loaded when they are first asked, each in the place of the one before."""

    def __init__(self, *, bf16: bool) -> None:
        self._bf16 = bf16
        self._loaded: dict[str, AnswerLogProbs] = {}

    def of(self, model: str | Path) -> AnswerLogProbs:
        def log_probs(batch: PaddedBatch) -> list[float]:
            if str(model) not in self._loaded:
                self._loaded.clear()
                self._loaded[str(model)] = answer_log_probs(_placed(load_causal_model(model)), bf16=self._bf16)
            return self._loaded[str(model)](batch)

        return log_probs


def _placed(network: Any) -> Any:
    import torch

    return network.to("cuda") if torch.cuda.is_available() else network


def _ids(to_ids: Any, tokenizer: Any, rows: Dataset, max_length: int) -> tuple[list[RowMapping], Sequence[Any], int]:
    kept: list[RowMapping] = []
    ids = []
    for row in rows:
        try:
            made = to_ids(tokenizer, row)
        except RowError:
            continue
        if made["length"] <= max_length:
            kept.append(row)
            ids.append(made)
    return kept, ids, len(rows) - len(kept)
